"""Peak memory and CPU time of reading a COCO JSON of the size of train2017, and images/s of
preparing images beside a copy of their files.

    python tests/benchmarks/prepare.py [--images 118000 --annotations 860000 --files 2000 --rounds
    3]

Writes a JSON (118k images, 860k annotations with polygons, categories last, about 550 MB) into a
temporary folder, then reads it twice in processes of their own: with `json.load`, which is what
most tools do, and with `cluster.formats.coco.read_coco`. The peak is the resident memory that the
kernel saw, less that of the imports. Then 640x480 JPEGs of about 100 kB are copied, decoded by two
threads (the least that looking at each of them costs) and prepared on a Ray that is up, in
interleaved rounds, local files to local files; with `--place s3://bucket/prefix` only this, from
and to S3.

With `--whole N` only this: a set of N pictures of 9 kB (160x120, every file another) and 7.3
annotations each, with polygons, is prepared from end to end, and the peak of the process that plans
it is told, over its imports: what the shards take, their tasks take.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
READ = """
import json, resource, sys, time
sys.path.insert(0, {root!r})
from cluster.formats import coco
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, start = peak(), time.process_time()
if {plain}:
    with open({path!r}) as file:
        content = json.load(file)
    images = len(content["images"])
else:
    images = len(coco.read_coco({path!r}, "").images)
print(f"{{images}} images, peak {{peak() - before:.0f}} MB over {{before:.0f}} MB of imports,",
      f"{{time.process_time() - start:.1f}} s CPU")
"""

WHOLE = """
import resource, sys, time
sys.path.insert(0, {root!r})
from tests.support.preparing import prepare_coco
from cluster.compute.session import connect
import cluster.reports.data_report
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
connect()
before, start = peak(), time.perf_counter()
found = prepare_coco(
    annotations={path!r}, images={images!r}, output={output!r}, on_ray=True)
taken = time.perf_counter() - start
print(f"{{found.counts.images}} images, {{found.counts.boxes}} boxes in",
      f"{{len(found.shards)}} shards: {{taken:.0f}} s,",
      f"{{found.counts.images / taken:.0f}} images/s, peak {{peak() - before:.0f}} MB over",
      f"{{before:.0f}} MB of imports and Ray")
"""


def write_coco(
    path: str, *, images: int, annotations: int, size: tuple[int, int] = (480, 640)
) -> None:
    """Polygons of 4 to 60 corners with two decimals, as in train2017; fields in its order."""
    rng = random.Random(0)
    polygons = [
        [[round(rng.uniform(0, 640), 2) for _ in range(2 * rng.randint(4, 60))]] for _ in range(500)
    ]
    shapes = [json.dumps(polygon) for polygon in polygons]
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"info": {"year": 2017}, "licenses": [], "images": [')
        for number in range(images):
            record = {
                "license": 3,
                "file_name": f"{number:012d}.jpg",
                "coco_url": f"http://images.example.org/train/{number:012d}.jpg",
            }
            record |= {
                "height": size[0],
                "width": size[1],
                "date_captured": "2013-11-14 11:18:45",
                "id": number + 9,
            }
            file.write(", " * (number > 0) + json.dumps(record))
        file.write('], "annotations": [')
        for number in range(annotations):
            x, y, width, height = (round(rng.uniform(0, 0.625 * size[0]), 2) for _ in range(4))
            start = (
                f'{{"segmentation": {rng.choice(shapes)}, "area": {width * height:.4f},'
                ' "iscrowd": 0, '
            )
            rest = (
                f'"image_id": {number % images + 9}, "bbox": [{x}, {y}, {width}, {height}],'
                f' "category_id": {number % 80 + 1}, "id": {number + 1}}}'
            )
            file.write(", " * (number > 0) + start + rest)
        file.write('], "categories": ')
        file.write(
            json.dumps(
                [
                    {"supercategory": "thing", "id": number, "name": f"class {number}"}
                    for number in range(1, 81)
                ]
            )
            + "}"
        )


def measure_speed(count: int, *, rounds: int, place: str) -> None:
    sys.path[:0] = [ROOT, os.path.join(ROOT, "tests", "benchmarks")]
    import ingest as photos
    import numpy as np

    from cluster.storage import files
    from detector.image import decode_image
    from tests.support.preparing import prepare_coco

    generator = np.random.default_rng(0)
    pictures = [photos.photo(generator) for _ in range(min(count, photos.DIFFERENT))]
    records = [
        {"id": i, "file_name": f"{i}.jpg", "height": 480, "width": 640} for i in range(count)
    ]
    names = [record["file_name"] for record in records]
    box = {"category_id": 1, "bbox": [10, 10, 50, 60], "iscrowd": 0, "area": 3000}
    boxes = [{"id": i, "image_id": i // 7, **box} for i in range(7 * count)]
    files.write_json(
        f"{place}/all.json",
        {"images": records, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]},
    )

    def each(work: Callable[[str], object], threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, names))

    def prepare() -> None:
        prepare_coco(
            annotations=f"{place}/all.json",
            images=f"{place}/images",
            output=f"{place}/out",
            overwrite=True,
            on_ray=True,
        )

    each(
        lambda name: files.write_bytes(
            f"{place}/images/{name}", pictures[int(name.split(".")[0]) % len(pictures)]
        ),
        8,
    )
    ways: dict[str, Callable[[], object]] = {
        "copy of the count": lambda: each(
            lambda name: files.write_bytes(
                f"{place}/copy/{name}", files.read_bytes(f"{place}/images/{name}")
            ),
            8,
        ),
        "decoded by two threads": lambda: each(
            lambda name: decode_image(files.read_bytes(f"{place}/images/{name}")), 2
        ),
        "prepare": prepare,
    }
    if not place.startswith("s3://"):
        ways["copy of the count"] = lambda: shutil.copytree(f"{place}/images", f"{place}/copy")
    from cluster.compute.session import connect

    connect()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:  # the first round starts Ray's workers
                rates[name].append(count / (time.perf_counter() - start))
        for folder in ("copy", "out"):
            files.delete_folder(f"{place}/{folder}")
    for name, values in rates.items():
        print(
            f"{name:24s}{statistics.median(values):6.0f} images/s"
            f" ({min(values):.0f}..{max(values):.0f})",
            flush=True,
        )


def measure_whole(images: int) -> None:
    import io

    import numpy as np
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "instances.json")
        write_coco(path, images=images, annotations=images * 73 // 10, size=(120, 160))
        smooth = np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8)
        sink = io.BytesIO()
        noise = np.random.default_rng(1).integers(-20, 20, (120, 160, 3))
        pixels = (
            (np.asarray(Image.fromarray(smooth).resize((160, 120)), int) + noise)
            .clip(0, 255)
            .astype(np.uint8)
        )
        Image.fromarray(pixels).save(sink, "JPEG", quality=85)
        os.mkdir(f"{folder}/images")
        for number in range(images):
            # What follows the end of a JPEG is not looked at.
            Path(folder, "images", f"{number:012d}.jpg").write_bytes(
                sink.getvalue() + number.to_bytes(8, "big")
            )
        print(
            f"source      {images} files of {len(sink.getvalue()) + 8} B, JSON of"
            f" {os.path.getsize(path) / 2**20:.0f} MB",
            flush=True,
        )
        code = WHOLE.format(root=ROOT, path=path, images=f"{folder}/images", output=f"{folder}/out")
        print(
            subprocess.run(
                [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
            ).stdout.strip(),
            flush=True,
        )


def speed(given: argparse.Namespace) -> None:
    if given.place:
        return measure_speed(given.files, rounds=given.rounds, place=given.place.rstrip("/"))
    with tempfile.TemporaryDirectory() as folder:
        measure_speed(given.files, rounds=given.rounds, place=folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--annotations", type=int, default=860_000)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--place", default="")
    parser.add_argument("--whole", type=int, default=0)
    given = parser.parse_args()
    if given.whole:
        return measure_whole(given.whole)
    if given.place:
        return speed(given)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "instances.json")
        write_coco(path, images=given.images, annotations=given.annotations)
        print(
            f"file        {os.path.getsize(path) / 2**20:.0f} MB, {given.annotations} annotations"
        )
        for name, plain in (("json.load", True), ("read_coco", False)):
            code = READ.format(root=ROOT, path=path, plain=plain)
            child = subprocess.run(
                [sys.executable, "-c", code], check=True, capture_output=True, text=True
            )
            print(f"{name:12s}{child.stdout.strip()}", flush=True)
    speed(given)


if __name__ == "__main__":
    main()
