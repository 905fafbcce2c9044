"""Whoever installs the project may use and pass on what it brings along."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements.lock"
ADMITTED = frozenset(
    "MIT|MIT License|MIT-0|MIT-CMU|BSD|BSD License|BSD-2-Clause|BSD-3-Clause|3-Clause BSD License"
    "|FreeBSD|0BSD|ISC|Zlib|CC0-1.0|BSL-1.0|Apache 2.0|Apache-2.0|Apache Software License"
    "|LLVM-exception|CNRI-Python|PSF-2.0|Python Software Foundation License"
    # Of these alone changed files must be passed on under the same licence.
    "|MPL-2.0|Mozilla Public License 2.0 (MPL 2.0)"
    # CUDA, which torch's own packages for GPUs need; its terms allow to run it and to ship it on.
    "|LicenseRef-NVIDIA-Proprietary|NVIDIA Proprietary Software".split("|")
)
EXCEPTIONS = {
    "codespell": "GPL-2.0-only",  # Checks the spelling of the source; nothing runs or ships it.
    "cuda-toolkit": "",  # Its metadata has none; it holds no file and names packages of CUDA.
    "huey": "",  # MIT by the file LICENSE in its package.
    # A library that MLflow's server imports as it is; who changes it passes on the change.
    "psycopg2-binary": "GNU Library or Lesser General Public License (LGPL)",
    "skops": "OSI Approved",  # MIT by the file LICENSE in its package.
}


def licence_of(package: str) -> str:
    """As the metadata of an installed package states it; empty where it does not."""
    found = importlib.metadata.metadata(package)
    classifiers = [one for one in found.get_all("Classifier") or [] if one.startswith("License")]
    return (
        found.get("License-Expression")
        or "; ".join(one.rpartition(" :: ")[2] for one in classifiers)
        or (found.get("License") or "").partition("\n")[0]
    )


def test_every_package_of_the_lock_has_a_licence_that_is_admitted() -> None:
    names = re.findall(r"^([\w.-]+)(?:\[.*\])?==", LOCK.read_text(), re.MULTILINE)
    assert len(names) > 100
    licences = {name: licence_of(name) for name in names}
    assert {name: licences.get(name) for name in EXCEPTIONS} == EXCEPTIONS
    unknown = {
        name: licence
        for name, licence in licences.items()
        if name not in EXCEPTIONS
        and not ADMITTED.issuperset(re.split(r" AND | OR | WITH |; ", licence))
    }
    assert not unknown


def test_every_package_of_the_lock_is_checked_by_hash() -> None:
    text = LOCK.read_text()
    packages = re.split(r"^(?=[\w.-]+(?:\[.*\])?==)", text, flags=re.MULTILINE)[1:]
    assert not [each.split()[0] for each in packages if "--hash=sha256:" not in each]
