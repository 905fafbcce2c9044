"""promote, rollback, history, versions and approve as commands, in this process, against a real
SQLite store and real packages that are loaded in processes of their own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.judging.gate import Loaded
from cluster.runs.package_files import load_predictor, package_digest
from cluster.scoring import compare_packages
from cluster.scoring.detect import detect_share
from cluster.shards.index import open_shard_set
from cluster.tracking import promotion, verdicts
from cluster.tracking.client import connect
from cluster.tracking.config import tracking_uri
from cluster.tracking.examples import write_examples
from cluster.tracking.file_digests import FILES_TAG, as_tag
from cluster.tracking.logged_package import log_package, logged_digests
from cluster.tracking.promotion import register
from cluster.tracking.register_run import DATA_TAG
from cluster.tracking.registry import DIGEST_TAG, resolve
from cluster.tracking.run import open_run
from pipelines import approve, history, promote, promotion_run, rollback, versions
from pipelines.command_line import run_verb
from tests.support.packages import make_package

WIDE = {"--gate.epsilon": "0.9", "--gate.size_drop": "1", "--gate.class_drop": "1"}
"""Untrained networks are alike."""
LOAD = promotion_run.load


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, small_sets: dict[str, str]) -> Path:
    """A storage root with two versions of `cells`; the second one has no example pictures."""
    root = tmp_path_factory.mktemp("storage")
    package = tmp_path_factory.mktemp("package")
    classes = [category.to_json() for category in open_shard_set(small_sets["val"]).categories]
    make_package(tmp_path_factory.mktemp("checkpoint"), package, classes)
    run = open_run(tracking_uri(None, str(root)), experiment="tests", name="trained")
    write_examples(str(package), small_sets["val"], str(root / "examples"))
    for examples in (str(root / "examples"), None):
        uri = log_package(run, str(package), examples=examples)
        tags = {
            DIGEST_TAG: package_digest(str(package)),
            FILES_TAG: as_tag(logged_digests(uri, tracking=run.uri)),
            DATA_TAG: small_sets["val"],
            "AP": "0.123456",
        }
        register(uri, "cells", tracking=run.uri, tags=tags)
    run.finish("FINISHED")
    return root


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def detect_here(package: Any, data: str, **_: Any) -> Any:
        return detect_share(load_predictor(package, "cpu"), open_shard_set(data))

    monkeypatch.setattr(compare_packages, "detect_set", detect_here)
    monkeypatch.setattr(promotion_run, "connect_for", lambda *_: None)
    # A process that imports MLflow and torch; one test starts it.
    monkeypatch.setattr(
        promotion_run, "load", lambda *_: Loaded(None, "2 pictures", 9.0, "CPU", 1.0)
    )
    monkeypatch.setattr(promotion, "SETTLE_S", 0.05)


@pytest.fixture
def typed(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Types a verb on a copy of the store: (exit code, stdout, stderr)."""
    root = tmp_path / "runs"
    shutil.copytree(store, root)
    connect(tracking_uri(None, str(root)))
    assert "was moved or copied" in capsys.readouterr().err
    verbs = {
        "promote": (promote.PromoteConfig, promote.main),
        "approve": (approve.ApproveConfig, approve.main),
        "rollback": (rollback.RollbackConfig, rollback.main),
        "history": (history.HistoryConfig, history.main),
        "versions": (versions.VersionsConfig, versions.main),
    }

    def run(verb: str, **options: str) -> tuple[int, str, str]:
        argv = [word for name, value in options.items() for word in (name, value)]
        config_class, main = verbs[verb]
        with pytest.raises(SystemExit) as end:
            run_verb(config_class, main, description="", argv=[*argv, "--storage", str(root)])  # type: ignore[arg-type]
        said = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, said.out, said.err

    run.root = root  # type: ignore[attr-defined]
    return run


def uri_of(typed: Any) -> str:
    return tracking_uri(None, str(typed.root))


def champion(typed: Any) -> int:
    return resolve("models:/cells@champion", tracking=uri_of(typed)).version


def test_a_version_is_promoted_rolled_back_and_the_history_says_so(
    typed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion_run, "load", LOAD)
    code, out, err = typed("promote", **{"--model": "models:/cells@challenger"}, **WIDE)
    assert code == 0, err
    assert "gate     models:/cells/2 against models:/cells/1 on " in out
    assert "no picture: it has no examples" in out
    assert "models:/cells/2 is the champion now; version 1 is previous" in out
    assert champion(typed) == 2
    again = typed("promote", **{"--model": "models:/cells/2"})
    assert again[0] == 0 and "is the champion already; nothing was done" in again[1]

    code, out, err = typed("promote", **{"--model": "models:/cells/1"}, **WIDE)
    assert code == 0 and "as recorded on 4 pictures" in out, err
    code, out, err = typed("rollback", **{"--name": "cells", "--reason": "misses platelets"})
    assert code == 0 and "models:/cells/2 is the champion again; version 1 is previous" in out
    code, out, _ = typed("history", **{"--name": "cells"})
    kinds = [line.split("UTC  ")[1].split(":")[0] for line in out.splitlines() if line[0] == "2"]
    assert code == 0 and kinds == ["first", "promotion", "promotion", "rollback"]
    assert "misses platelets" in out and "not distinguishable" in out
    code, out, _ = typed("history", **{"--name": "cells", "--as_json": "true"})
    assert [move["to"] for move in json.loads(out)["moves"]] == [1, 2, 1, 2]
    code, out, _ = typed("versions", **{"--name": "cells"})
    assert code == 0 and "2        challenger, champion  0.1235  passed" in out


def test_a_refusal_is_exit_code_4_moves_nothing_and_is_kept(typed: Any) -> None:
    code, out, err = typed("promote", **{"--model": "models:/cells/2", "--gate.min_ap": "0.9"})
    assert code == 4 and "NO  AP" in out
    assert err.startswith("error: models:/cells/2 is not promoted: AP: 0.0") and (
        err.count("\n") == 1
    )
    assert champion(typed) == 1
    gate = json.loads(connect(uri_of(typed)).get_model_version("cells", "2").tags[verdicts.GATE])
    assert gate["passed"] is False and gate["data_digest"] and gate["limits"]["min_ap"] == 0.9
    assert "refused" in typed("history", **{"--name": "cells"})[1]
    assert "refused" in typed("versions", **{"--name": "cells"})[1]

    refused = {"--model": "models:/cells/2", "--gate.min_ap": "0.9", "--force": "true"}
    code, _, err = typed("promote", **refused)
    assert code == 2 and "needs --reason TEXT" in err
    code, out, err = typed("promote", **refused, **{"--reason": "the demo is tomorrow"})
    assert code == 0 and champion(typed) == 2, err
    out = typed("history", **{"--name": "cells"})[1]
    assert "forced" in out and "the demo is tomorrow" in out
    # The first refusal, and that of the gate before it was overruled.
    assert out.count("refused: 2, by ") == 2


def test_a_second_person_approves(typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"--model": "models:/cells/2", "--needs_approval": "true"}
    code, out, err = typed("promote", **asked, **WIDE)
    assert code == 0 and "waits for a second person: approve --model models:/cells/2" in out, err
    assert champion(typed) == 1
    assert "waits for approval" in typed("versions", **{"--name": "cells"})[1]
    code, _, err = typed("approve", **{"--model": "models:/cells/1"})
    assert code == 2 and "no promotion waits for approval" in err
    code, _, err = typed("approve", **{"--model": "models:/cells/2"})
    assert code == 2 and "another person must approve" in err
    # Another verdict withdraws the request.
    assert typed("promote", **asked, **{"--gate.min_ap": "0.9"})[0] == 4
    assert "waits for approval" not in typed("versions", **{"--name": "cells"})[1]
    assert typed("approve", **{"--model": "models:/cells/2"})[0] == 2
    assert typed("promote", **asked, **WIDE)[0] == 0
    asker = promotion.user()
    for module in (promotion, verdicts):
        monkeypatch.setattr(module, "user", lambda: "ann@desk")
    code, out, err = typed("approve", **{"--model": "models:/cells/2"})
    assert code == 0 and champion(typed) == 2, err
    (move,) = json.loads(typed("history", **{"--name": "cells", "--as_json": "true"})[1])["moves"][
        1:
    ]
    assert move["by"] == "ann@desk" and f"asked by {asker}" in move["reason"]
    assert typed("approve", **{"--model": "models:/cells/2"})[0] == 2


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"--model": "models:/cells/7"}, 2, "cells has no version 7"),
        ({"--model": "models:/other@champion"}, 2, "no model 'other'"),
        ({"--model": "cells"}, 2, "a registered model is models:/NAME@champion"),
        ({"--model": "models:/cells/2", "--data": "nothing"}, 2, "nothing"),
        ({"--model": "models:/cells/2", "--gate.confidence": "0.4"}, 2, "gate.confidence"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_judged(
    typed: Any, options: dict[str, str], code: int, said: str
) -> None:
    found, _, err = typed("promote", **options)
    assert found == code and said in err and err.count("\n") == 1, err
    assert champion(typed) == 1


def test_code_that_was_never_verified_is_not_run(
    typed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion_run, "load", LOAD)
    connect(uri_of(typed)).delete_model_version_tag("cells", "2", FILES_TAG)
    for path in typed.root.glob("mlartifacts/models/*/artifacts/code/detector/predict.py"):
        path.write_text(f"open({str(typed.root / 'run')!r}, 'w')\n" + path.read_text())
    code, out, err = typed("promote", **{"--model": "models:/cells/2"}, **WIDE)
    assert code == 3 and "models:/cells/1" in err, err
    connect(uri_of(typed)).delete_registered_model_alias("cells", "champion")
    code, out, err = typed("promote", **{"--model": "models:/cells/2"}, **WIDE)
    assert code == 4 and "NO  loads in a fresh process  not loaded" in out, err
    assert not (typed.root / "run").exists()


def test_a_changed_file_is_refused_before_it_is_run(typed: Any) -> None:
    for path in typed.root.glob("mlartifacts/models/*/artifacts/code/detector/predict.py"):
        path.write_text("raise SystemExit('this was run')\n" + path.read_text())
    code, out, err = typed("promote", **{"--model": "models:/cells/2"}, **WIDE)
    assert code == 3 and "code/detector/predict.py has changed" in err and "was run" not in out


@pytest.mark.parametrize(("verb", "reason"), [("rollback", "x"), ("history", ""), ("versions", "")])
def test_an_unknown_name_is_one_line(typed: Any, verb: str, reason: str) -> None:
    more = {"--reason": reason} if reason else {}
    code, _, err = typed(verb, **{"--name": "other"}, **more)
    assert code == 2 and "no model 'other' in the registry" in err and err.count("\n") == 1
