"""Prediction beside the bare network and beside Ray Data, its memory, and a listing of a million
keys; in one run.

    python tests/benchmarks/predict.py [--parts rates tiles overlap memory listing --images 600
    --rounds 3 --workers 1 --backbone resnet18 --width 128 --canvas 256x320 --device cpu --cpus 0.75
    --counts 1000 10000 --keys 1000000]

`rates`: 640x480 JPEGs of about 90 kB, a different one each of 50. Rounds are interleaved; figures
are medians with their spread, ratios within a round to `bare`: as many processes as there are
workers, each with the same network on the same batch in memory again and again. `ours` is timed
from the moment when all workers have loaded the network to the last part, and to the last file of
the whole. `Ray Data` is what its guide shows for batch inference: `read_images`, `map_batches` with
an actor that holds the network, `write_parquet`; timed from the moment when an actor has loaded it.
CPU seconds are those of this process and all below it.

`tiles`: the same for pictures of 1280x960 in tiles; the unit is a view. `overlap`: how much of its
time a network that leaves the CPUs alone is at work, with one part at a time and with two, as the
workers have it; without Ray. `memory`: peaks of the driver and of a worker in a prediction of its
own for each of --counts. `listing`: the plan of a bucket that is faked by a server of
tests/support/listed_bucket.py.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, os.path.dirname(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))

import numpy as np
import psutil
import torch
from safetensors.torch import save_file

from cluster.compute import session
from cluster.prediction import image_list, pool, results
from cluster.prediction import plan as plans
from cluster.prediction.image_list import ImageList, open_images
from cluster.prediction.part import PartJob, predict_part
from cluster.prediction.plan import Claim, Plan
from cluster.prediction.planner import Planner
from cluster.prediction.predict import predict
from cluster.prediction.progress import Progress
from cluster.prediction.worker import GPU_BATCH
from cluster.runs.package_files import load_predictor, read_package
from detector.batch import Batch, collate
from detector.choices import WHOLE_PICTURE, ViewSettings
from detector.decode import Detections
from detector.image import MAX_PIXELS
from detector.model import RetinaNet
from detector.predict import MODEL_FILE, Predictor, read_json, write_package
from detector.tiling import views_of
from tests.benchmarks.decode import encoded, photo
from tests.support.listed_bucket import ListedBucket

DIFFERENT = 50
LARGE = (960, 1280)
"""(height, width) px of the pictures that are detected in tiles."""
WAIT_S = 0.2
"""Of a batch of eight."""
SPAWN = multiprocessing.get_context("spawn")


def make_package(folder: Path, *, backbone: str, width: int, canvas: tuple[int, int]) -> str:
    """An untrained network that has 100 detections in every picture."""
    torch.manual_seed(0)
    keywords: dict[str, Any] = {"backbone": backbone, "classes": 5, "width": width, "prior": 0.5}
    folder.mkdir()
    state = RetinaNet(**keywords).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, f"{folder}/weights")
    decode = {"score_threshold": 0.05, "top_per_level": 100, "nms_threshold": 0.5}
    description = {
        "model": keywords,
        "canvases": [canvas],
        "decode": {**decode, "max_detections": 100},
        "amp": True,
    }
    classes = [{"label": n, "id": n + 1, "name": f"class {n}"} for n in range(5)]
    package = f"{folder}/package"
    write_package(package, weights=f"{folder}/weights", description=description, classes=classes)
    return package


def write_pictures(folder: Path, count: int, *, height: int = 480, width: int = 640) -> str:
    """Few different pictures, under many names."""
    folder.mkdir()
    size = height * width
    for number in range(min(count, DIFFERENT)):
        data = encoded(photo(height, width, number), most_bytes=max(2000, size * 90_000 // 307_200))
        (folder / f"{number:07d}.jpg").write_bytes(data)
    for number in range(DIFFERENT, count):
        os.link(folder / f"{number % DIFFERENT:07d}.jpg", folder / f"{number:07d}.jpg")
    return str(folder)


class Clock:
    """Wall and CPU seconds since the last `start`, of this process and all below it."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.wall, self.cpu = time.perf_counter(), self._cpu()
        self.latest = dict(self.cpu)

    def read(self) -> tuple[float, float]:
        # A process that has ended meanwhile counts as at the last reading.
        self.latest |= self._cpu()
        spent = sum(seconds - self.cpu.get(pid, 0.0) for pid, seconds in self.latest.items())
        return time.perf_counter() - self.wall, spent

    @staticmethod
    def _cpu() -> dict[int, float]:
        me, found = psutil.Process(), dict[int, float]()
        for process in (me, *me.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                found[process.pid] = times.user + times.system
        return found


def bare(package: str, settings: argparse.Namespace, images: int) -> tuple[float, float]:
    """(wall, CPU) seconds of the bare network for so many images."""
    share = images // settings.workers
    pipes = [SPAWN.Pipe() for _ in range(settings.workers)]
    started = [
        SPAWN.Process(target=_bare, args=(package, settings.device, share, there), daemon=True)
        for _, there in pipes
    ]
    for process in started:
        process.start()
    for here, _ in pipes:
        here.recv()
    clock = Clock()
    for here, _ in pipes:
        here.send("go")
    for here, _ in pipes:
        here.recv()
    found = clock.read()
    for here, _ in pipes:
        here.send("end")
    for process in started:
        process.join()
    return found


def _bare(package: str, device: str, images: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    predictor = Predictor.load(package, device=device)
    size = predictor.batch_size if device == "cpu" else GPU_BATCH
    picture = np.asarray(photo(480, 640, 0))
    samples = [predictor.sample(picture, number)[0] for number in range(size)]
    batch, sizes = collate(samples), [(480, 640)] * size
    for _ in range(2):
        predictor.detect(batch, sizes)
    pipe.send("ready")
    pipe.recv()
    for _ in range(images // size):
        predictor.detect(batch, sizes)
    pipe.send("done")
    pipe.recv()


def ours(
    package: str, folder: str, output: str, settings: argparse.Namespace, views: ViewSettings
) -> tuple[tuple[float, float], float]:
    """(wall, CPU) seconds to the last part, and wall seconds to the last file."""
    images, clock = open_images(folder), Clock()
    loaded: list[int] = []

    def look(crew: pool.Crew) -> None:
        if not loaded and crew.loaded == settings.workers:
            loaded.append(crew.loaded)
            clock.start()

    gpus = 1 if settings.device == "cuda" else 0
    workers = pool.Workers(
        settings.workers, settings.workers, settings.cpus, gpus, read_package(package)
    )
    job = PartJob(output, 0, "benchmark", "", MAX_PIXELS, views)
    names, ids = [f"class {n}" for n in range(5)], [1, 2, 3, 4, 5]
    decode = read_json(package, MODEL_FILE)["decode"]
    claim = Claim("", "", decode, folder, "uri", MAX_PIXELS, ids, 0, views.as_dict())
    plan = Plan(claim.to_json(), "benchmark")
    with Planner(output, plan, lambda: _parts(images), dict) as planner:
        for _ in pool.run_parts(workers, planner, job, done=lambda *_: False, look=look):
            parts = clock.read()
        timing = Progress().timing(settings.workers)
        results.finish(output, planner.plan, class_names=names, category_ids=ids, timing=timing)
    return parts, clock.read()[0]


def _parts(images: ImageList) -> Iterator[Any]:
    return plans.cut(image_list.numbered(images.rows()))


class GuidePredictor:
    """The actor of Ray Data's guide to batch inference, with this network."""

    def __init__(self, package: dict[str, bytes], device: str, threads: int, loaded: str):
        torch.set_num_threads(1 if device != "cpu" else threads)
        self.predictor = load_predictor(package, device)
        Path(loaded).touch()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        found = self.predictor(list(batch["image"]))
        return {
            "path": batch["path"],
            "boxes": [one.boxes_N4 for one in found],
            "scores": [one.scores_N for one in found],
            "labels": [one.labels_N for one in found],
        }


def ray_data(package: str, folder: str, output: str, settings: argparse.Namespace) -> Any:
    """(wall, CPU) seconds from the first loaded network to the last row."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    loaded, clock = Path(f"{output}-loaded"), Clock()

    def watch() -> None:
        while not loaded.exists():
            time.sleep(0.02)
        clock.start()

    threading.Thread(target=watch, daemon=True).start()
    gpu = settings.device == "cuda"
    dataset = ray.data.read_images(folder, mode="RGB", include_paths=True).map_batches(
        GuidePredictor,
        fn_constructor_args=(
            read_package(package),
            settings.device,
            max(1, int(settings.cpus)),
            str(loaded),
        ),
        batch_size=GPU_BATCH if gpu else 8,
        compute=ray.data.ActorPoolStrategy(size=settings.workers),
        num_cpus=settings.cpus,
        num_gpus=1 if gpu else 0,
    )
    dataset.write_parquet(output)
    return clock.read()


def rates(settings: argparse.Namespace, folder: Path) -> None:
    package = make_package(
        folder / "network",
        backbone=settings.backbone,
        width=settings.width,
        canvas=settings.canvas,
    )
    pictures = write_pictures(folder / "pictures", settings.images)
    session.connect(num_cpus=os.cpu_count())
    tiled = ViewSettings(tile=LARGE[1] // 4, overlap=0.2)
    views = len(views_of(*LARGE, tiled))
    large = settings.images // views
    if "tiles" in settings.parts:
        write_pictures(folder / "large", large, height=LARGE[0], width=LARGE[1])
    found: dict[str, list[tuple[float, float]]] = {}
    for number in range(settings.rounds):
        size = 8 if settings.device == "cpu" else GPU_BATCH
        even = settings.images // (settings.workers * size) * settings.workers * size
        base = tuple(even / one for one in bare(package, settings, even))

        def note(name: str, units: float, seconds: Any, base: Any = base) -> None:
            wall, cpu = units / seconds[0], units / seconds[1]
            found.setdefault(name, []).append((wall, cpu))
            found.setdefault(f"{name} / bare", []).append((wall / base[0], cpu / base[1]))
            print(f"{name}: {wall:.2f}/s, {cpu:.2f} a CPU second", flush=True)

        note("bare", even, [even / one for one in base])
        if "rates" in settings.parts:
            parts, whole = ours(package, pictures, f"{folder}/o{number}", settings, WHOLE_PICTURE)
            note("ours", settings.images, parts)
            note("ours with all files", settings.images, (whole, parts[1]))
            guide = ray_data(package, pictures, f"{folder}/r{number}", settings)
            note("Ray Data", settings.images, guide)
        if "tiles" in settings.parts:
            parts, _ = ours(package, f"{folder}/large", f"{folder}/t{number}", settings, tiled)
            note(f"views of {LARGE[1]}x{LARGE[0]}, {views} each", large * views, parts)
    print(f"| | units/s | units a CPU second |\n|---|---|---|{_load()}")
    for name, rows in found.items():
        print(f"| {name} | {_spread([row[0] for row in rows])} | {_spread([r[1] for r in rows])} |")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g}..{max(values):.3g})"


def _load() -> str:
    return f" load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


class Waiting(Predictor):
    """A network that needs time and no CPU, as one on a GPU: 40 images/s."""

    def detect(self, batch: Batch, original_sizes: Any, *, flip: bool = False) -> list[Detections]:
        time.sleep(WAIT_S)
        boxes, scores = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        return [Detections(boxes, scores, np.zeros(0, np.int64)) for _ in original_sizes]


def overlap(settings: argparse.Namespace, folder: Path) -> None:
    """Parts of 16 and 32 images on such a network, one and two at a time; two threads decode."""
    package = make_package(folder / "waits", backbone="resnet18", width=64, canvas=settings.canvas)
    images = open_images(write_pictures(folder / "decoded", 256))
    network, lock = Waiting.load(package), threading.Lock()
    names = [f"class {n}" for n in range(5)]
    found: dict[int, list[float]] = {1: [], 2: []}
    for number in range(settings.rounds):
        for at_once, rates in found.items():
            output = f"{folder}/waited-{number}-{at_once}"
            for part, table in enumerate(_parts(images)):
                plans.write_part(output, part, table)
            jobs = [PartJob(output, n, "benchmark", "", MAX_PIXELS) for n in range(part + 1)]

            def work(job: PartJob) -> int:
                return predict_part(job, network, names, threads=2, network=lock).ok

            start = time.perf_counter()
            with ThreadPoolExecutor(at_once) as threads:
                count = sum(threads.map(work, jobs))
            rates.append(count / (time.perf_counter() - start) / (network.batch_size / WAIT_S))
    for at_once, rates in found.items():
        print(f"{at_once} parts at once: {_spread(rates)} of the bare network{_load()}", flush=True)


def _peak(pid: int | str = "self") -> float:
    """MiB of the largest resident memory of a process so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def memory(settings: argparse.Namespace, folder: Path) -> None:
    """Small pictures and a small network, so that many images take minutes and not hours."""
    package = make_package(folder / "small", backbone="resnet18", width=64, canvas=(64, 96))
    for count in settings.counts:
        pictures = write_pictures(folder / f"{count}", count, height=48, width=64)
        _alone(_memory, package, pictures, f"{folder}/out-{count}", count)


def _alone(function: Callable[..., None], *arguments: Any) -> None:
    process = SPAWN.Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} failed")


def _memory(package: str, pictures: str, output: str, count: int) -> None:
    before, workers, ended = _peak(), dict[int, float](), threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error, OSError):
                    if process.name().startswith("ray::Worker"):
                        workers[process.pid] = _peak(process.pid)

    threading.Thread(target=watch, daemon=True).start()
    start = time.perf_counter()
    predict(package, open_images(pictures), output, workers=1)
    ended.set()
    print(
        f"{count} images: driver {_peak():.0f} MiB ({before:.0f} after its imports), worker"
        f" {max(workers.values()):.0f} MiB, {time.perf_counter() - start:.0f} s{_load()}",
        flush=True,
    )


def listing(settings: argparse.Namespace, folder: Path) -> None:
    with ListedBucket(settings.keys) as endpoint:
        credentials = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
        os.environ.update({"AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1", **credentials})
        _alone(_listing, f"{folder}/plan", settings.keys)


def _listing(output: str, keys: int) -> None:
    before, start = _peak(), time.perf_counter()
    images = open_images("s3://bucket/pictures")

    times: list[float] = []
    with Planner(output, Plan({}, "benchmark"), lambda: _parts(images), dict) as planner:
        while not times or planner.total is None:
            time.sleep(0.005)
            if not times and Path(output, "plan", plans.name_of(0)).exists():
                times.append(time.perf_counter() - start)
    print(
        f"{keys} keys: first part after {times[0]:.2f} s, all {planner.total} in"
        f" {time.perf_counter() - start:.0f} s, {_peak():.0f} MiB ({before:.0f} after the"
        f" imports){_load()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    every = ["rates", "tiles", "overlap", "memory", "listing"]
    parser.add_argument("--parts", nargs="+", choices=every, default=every)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--canvas", default="256x320")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--cpus", type=float, default=0.75)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--keys", type=int, default=1_000_000)
    settings = parser.parse_args()
    height, _, width = settings.canvas.partition("x")
    settings.canvas = (int(height), int(width))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if {"rates", "tiles"} & set(settings.parts):
            rates(settings, folder)
        if "overlap" in settings.parts:
            overlap(settings, folder)
        if "memory" in settings.parts:
            memory(settings, folder)
        if "listing" in settings.parts:
            listing(settings, folder)


if __name__ == "__main__":
    main()
