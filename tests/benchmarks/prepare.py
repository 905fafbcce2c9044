"""Peak memory and CPU time of reading a COCO JSON of the size of train2017: 118k images, 860k annotations with polygons, categories last.

    python tests/benchmarks/prepare.py [--images 118000 --annotations 860000]

Writes the file (about 450 MB) into a temporary folder, then reads it twice in processes of their own: with `json.load`, which is what most tools
do, and with `cluster.coco.read_coco`. No image is looked at. The peak is the resident memory that the kernel saw, less that of the imports.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
READ = """
import json, resource, sys, time
sys.path.insert(0, {root!r})
from cluster import coco
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, start = peak(), time.process_time()
if {plain}:
    with open({path!r}) as file:
        content = json.load(file)
    images = len(content["images"])
else:
    images = len(coco.read_coco({path!r}).images)
print(f"{{images}} images, peak {{peak() - before:.0f}} MB over {{before:.0f}} MB of imports, {{time.process_time() - start:.1f}} s CPU")
"""


def write_coco(path: str, *, images: int, annotations: int) -> None:
    """Polygons of 4 to 60 corners with two decimals, as in train2017; fields in its order."""
    rng = random.Random(0)
    polygons = [[[round(rng.uniform(0, 640), 2) for _ in range(2 * rng.randint(4, 60))]] for _ in range(500)]
    shapes = [json.dumps(polygon) for polygon in polygons]
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"info": {"year": 2017}, "licenses": [], "images": [')
        for number in range(images):
            record = {"license": 3, "file_name": f"{number:012d}.jpg", "coco_url": f"http://images.example.org/train/{number:012d}.jpg"}
            record |= {"height": 480, "width": 640, "date_captured": "2013-11-14 11:18:45", "id": number + 9}
            file.write(", " * (number > 0) + json.dumps(record))
        file.write('], "annotations": [')
        for number in range(annotations):
            x, y, width, height = (round(rng.uniform(0, 300), 2) for _ in range(4))
            start = f'{{"segmentation": {rng.choice(shapes)}, "area": {width * height:.4f}, "iscrowd": 0, '
            rest = f'"image_id": {number % images + 9}, "bbox": [{x}, {y}, {width}, {height}], "category_id": {number % 80 + 1}, "id": {number + 1}}}'
            file.write(", " * (number > 0) + start + rest)
        file.write('], "categories": ')
        file.write(json.dumps([{"supercategory": "thing", "id": number, "name": f"class {number}"} for number in range(1, 81)]) + "}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory and CPU time of reading a large COCO JSON.")
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--annotations", type=int, default=860_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "instances.json")
        write_coco(path, images=given.images, annotations=given.annotations)
        print(f"file        {os.path.getsize(path) / 2**20:.0f} MB, {given.annotations} annotations")
        for name, plain in (("json.load", True), ("read_coco", False)):
            code = READ.format(root=ROOT, path=path, plain=plain)
            print(f"{name:12s}{subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout.strip()}", flush=True)


if __name__ == "__main__":
    main()
