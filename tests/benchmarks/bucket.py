"""Prediction over a bucket of a real S3 server: odd names, broken objects, and a storage that is
away for two minutes.

    python tests/benchmarks/bucket.py [--objects 2000 --away 120]

A Ceph gateway gets the pictures, one in a hundred broken in one of ten ways, below nested prefixes
with zero-byte markers of folders. One prediction is undisturbed. Another one meets a storage that
resets every connection from the time its second part is there; it is typed again until it ends.
Both must have one row an object, with the reason that belongs to the fault, and no other errors.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))

from tests.support.ceph_gateway import CephGateway
from tests.support.faulty_s3 import FaultyS3, Rule
from tests.support.packages import make_package
from tests.support.predicting import red_picture, rows_of
from tests.support.typed_prediction import begin, parts

FOLDERS = ["", "2024/05/", "a b/", "ünï/çé/", "per%20cent/", "plus+and&more/", "hash#1/", "日本/"]
STEMS = ["{}", "cell {}", "{}+1", "100% {}", "a&b {}", "#{}", "naïve-{}", "q?{}", "~{}'", "[{}]"]
BROKEN_EVERY = 100


def saved(kind: str, size: tuple[int, int] = (128, 96), mode: str = "RGB") -> bytes:
    sink = io.BytesIO()
    Image.new(mode, size).save(sink, kind)
    return sink.getvalue()


def broken() -> list[tuple[str, bytes, str]]:
    """(suffix, content, reason) of each way to be broken."""
    jpeg, png = red_picture(kind="JPEG"), red_picture()
    table, archive = io.BytesIO(), io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), table)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "a")
    # Its header says 60,000 x 60,000 px.
    bomb = bytearray(saved("BMP"))
    bomb[18:26] = (60_000).to_bytes(4, "little") * 2
    return [
        (".jpg", b"", "empty"),
        (".png", b"", "empty"),
        (".jpg", b"<html><body>403 Forbidden</body></html>", "not_an_image"),
        (".png", b"\x00" * 4096, "not_an_image"),
        (".jpg", table.getvalue(), "not_an_image"),
        (".png", archive.getvalue(), "not_an_image"),
        (".jpg", jpeg[: len(jpeg) // 2], "undecodable"),
        (".png", png[: len(png) // 2], "undecodable"),
        (".png", png[:60] + bytes(reversed(png[60:])), "undecodable"),
        (".bmp", bytes(bomb), "too_many_pixels"),
    ]


def fill(client: Any, objects: int) -> dict[str, str]:
    """Put the objects; the expected reason by key, "" of a good one."""
    ways, expected = broken(), {}
    for number in range(objects):
        folder, stem = FOLDERS[number % len(FOLDERS)], STEMS[number // 8 % len(STEMS)]
        suffix, data, reason = ".png", red_picture(number), ""
        if number % BROKEN_EVERY == BROKEN_EVERY - 1:
            suffix, data, reason = ways[number // BROKEN_EVERY % len(ways)]
        key = f"in/{folder}{stem.format(number)}{suffix}"
        client.put_object(Bucket="bench", Key=key, Body=data)
        expected[key] = reason
    for folder in FOLDERS[1:]:
        client.put_object(Bucket="bench", Key=f"in/{folder}", Body=b"")
    return expected


def check(output: str, expected: dict[str, str], name: str) -> str:
    """The counts of what is not as expected, in words."""
    rows = rows_of(output)
    found = {row["uri"].removeprefix("s3://bench/"): row["reason"] or "" for row in rows}
    twice = len(rows) - len(found)
    missing = expected.keys() - found.keys()
    wrong = {key: (found[key], expected[key]) for key in found if found[key] != expected.get(key)}
    reasons = Counter(reason for reason in found.values() if reason)
    lines = (
        f"{name}: {len(rows)} rows, {twice} twice, {len(missing)} missing, errors {dict(reasons)}"
    )
    return (
        f"{lines}, {len(wrong)} with another reason than expected {dict(list(wrong.items())[:3])}"
    )


def finished(driver: subprocess.Popen[str]) -> int:
    _, err = driver.communicate()
    if driver.returncode not in (0, 1):
        raise SystemExit(err)
    if driver.returncode:
        print(f"  {err.strip().splitlines()[-1]}", flush=True)
    return driver.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description="Predict over a bucket of a Ceph gateway.")
    parser.add_argument("--objects", type=int, default=2000)
    parser.add_argument("--away", type=float, default=120, help="seconds without storage")
    asked = parser.parse_args()
    away = Rule("reset", times=0)
    with (
        tempfile.TemporaryDirectory(prefix="rr-") as folder,
        CephGateway(f"{folder}/ceph") as gateway,
        FaultyS3(gateway.url, away) as proxy,
    ):
        os.environ.update(gateway.environment)
        client: Any = boto3.client("s3")
        client.create_bucket(Bucket="bench")
        expected = fill(client, asked.objects)
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        for name in ("checkpoint", "package"):
            Path(folder, name).mkdir()
        package = f"{folder}/package"
        make_package(Path(folder, "checkpoint"), Path(package))

        began = time.monotonic()
        if finished(begin(package, "s3://bench/in", f"{folder}/undisturbed")):
            raise SystemExit("the undisturbed prediction failed")
        print(f"undisturbed: {time.monotonic() - began:.0f} s")
        print(check(f"{folder}/undisturbed", expected, "undisturbed"), flush=True)

        output = f"{folder}/away"
        driver = begin(package, "s3://bench/in", output)
        while len(parts(output)) < 2 and driver.poll() is None:
            time.sleep(0.05)
        away.times, gone = 1e9, time.monotonic()
        commands = 1
        while finished(driver):
            commands += 1
            time.sleep(max(0.0, gone + asked.away - time.monotonic()))
            away.times = 0
            driver = begin(package, "s3://bench/in", output)
        print(check(output, expected, f"storage away for {asked.away:g} s, {commands} commands"))


if __name__ == "__main__":
    main()
