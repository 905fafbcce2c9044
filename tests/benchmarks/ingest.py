"""The training stream beside plain threads, torch's DataLoader and the decoder alone, in one run on
the same shards.

    python tests/benchmarks/ingest.py [--images 2000 --rounds 3 --data s3://bucket/prefix --parts
    rates epochs train]

640x480 JPEGs of about 100 kB, decoded, scaled to a 384x512 canvas, flipped at random, in batches of
16, for one rank with two threads. Rounds are interleaved; the figures are medians with their
spread. CPU seconds are those of this process and all below it, so Ray's own are counted. With
--data the shards are put there and read from there (the AWS_ variables say where that is: a Ceph
gateway from tests/support/ceph_gateway.py, or in front of it tests/support/faulty_s3.py, which adds
latency and errors). Of the parts, `rates` compares whole epochs, `epochs` shows first batches, gaps
and memory over --epochs epochs, and `train` runs training steps on the stream beside the same steps
on one batch in memory.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.dirname(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))

import numpy as np
import psutil
import torch
import torchvision.io
from PIL import Image
from torchvision.transforms import v2

from cluster.compute.session import connect
from cluster.loading import datasets, epoch_plan
from cluster.loading.prefetch import chunks, ordered_map
from cluster.loading.sampler import Sampler
from cluster.loading.stream import Stream
from cluster.shards import index, read, write
from cluster.shards.format import Category, Row, shard_name
from cluster.storage import files
from cluster.storage.uris import is_remote
from detector.batch import Batch, collate
from detector.image import decode_image

CANVAS, BATCH, THREADS = (384, 512), 16, 2
DIFFERENT = 200


def photo(random: np.random.Generator) -> bytes:
    """640x480 with structure at every scale, as photographs have, at a quality that gives about 100
    kB.
    """
    pixels = np.zeros((480, 640, 3))
    for cells in (4, 16, 64, 240):
        coarse = random.normal(size=(cells * 3 // 4, cells, 3))
        grown = [
            np.asarray(
                Image.fromarray(coarse[..., c].astype(np.float32)).resize(
                    (640, 480), Image.Resampling.BICUBIC
                )
            )
            for c in range(3)
        ]
        pixels += np.stack(grown, axis=2) * 160 / cells**0.5
    sink = io.BytesIO()
    Image.fromarray((128 + pixels).clip(0, 255).astype(np.uint8)).save(sink, "JPEG", quality=92)
    return sink.getvalue()


def write_set(uri: str, images: int) -> index.ShardSet:
    random = np.random.default_rng(0)
    pictures = [photo(random) for _ in range(min(images, DIFFERENT))]
    print(f"{images} images of {np.mean([len(p) for p in pictures]) / 1000:.0f} kB", flush=True)

    def row(number: int) -> Row:
        corner = random.random((7, 2)) * [400, 300]
        boxes = np.concatenate([corner, corner + 20 + 150 * random.random((7, 2))], axis=1)
        picture = pictures[number % len(pictures)]
        return Row(
            number,
            f"{number}.jpg",
            picture,
            480,
            640,
            boxes,
            [number % 3] * 7,
            [False] * 7,
            [100.0] * 7,
            0,
            bytes(32),
        )

    held = [
        [row(number) for number in range(start, min(start + 640, images))]
        for start in range(0, images, 640)
    ]
    written = [
        write.write_shard(uri, shard_name(i, len(held)), part, row_group_rows=32)
        for i, part in enumerate(held)
    ]
    categories = tuple(Category(label, label + 1, name) for label, name in enumerate("abc"))
    return index.write_index(
        uri, index.Index(categories, tuple(written), index.Counts(images=images))
    )


def sampler(epoch: int) -> Sampler:
    return Sampler([CANVAS], None, 3, 0, epoch, {"flip": 0.5})


def units_of(shard_set: index.ShardSet, epoch: int) -> list[epoch_plan.Unit]:
    sequence = epoch_plan.epoch_sequence(shard_set.rows_per_group, seed=0, epoch=epoch)
    return epoch_plan.units(sequence, shard_set.rows_per_group)


def marked(table) -> list[dict]:
    return [{**row, "copy": 0, "canvas": 0} for row in table.to_pylist()]


def threads_alone(shard_set: index.ShardSet, epoch: int) -> Iterator[Batch]:
    """The same reads and the same samples with plain threads."""
    make = sampler(epoch)

    def read(unit: epoch_plan.Unit) -> list[dict]:
        return marked(
            read.read_rows([shard_set.locate_group(group) for group in unit.groups], unit.rows)
        )

    with ThreadPoolExecutor(datasets.READ_TASKS) as pool:
        waiting, units = [], iter(units_of(shard_set, epoch))

        def arriving() -> Iterator[dict]:
            for unit in units:
                waiting.append(pool.submit(read, unit))
                if len(waiting) > datasets.READ_TASKS:
                    yield from waiting.pop(0).result()
            for future in waiting:
                yield from future.result()

        for chunk in chunks(ordered_map(make.sample, arriving(), threads=THREADS), BATCH):
            yield collate(chunk)


class Rows(torch.utils.data.IterableDataset):
    """The same reads and samples for torch's DataLoader: every worker takes every second unit."""

    def __init__(self, shard_set: index.ShardSet):
        self.shard_set, self.epoch = shard_set, 0

    def __iter__(self) -> Iterator:
        worker = torch.utils.data.get_worker_info()
        torch.set_num_threads(1)
        make = sampler(self.epoch)
        for unit in units_of(self.shard_set, self.epoch)[worker.id :: worker.num_workers]:
            for row in marked(
                read.read_rows(
                    [self.shard_set.locate_group(group) for group in unit.groups], unit.rows
                )
            ):
                yield make.sample(row)
        self.epoch += 1


class Files(torch.utils.data.Dataset):
    """What is mostly written for a DataLoader: a folder of files, torchvision's decoder, its
    transforms v2.
    """

    def __init__(self, folder: str, count: int):
        self.folder, self.count = folder, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> torch.Tensor:
        torch.set_num_threads(1)
        image = v2.functional.resize(
            torchvision.io.decode_image(os.path.join(self.folder, f"{number}.jpg")), CANVAS
        )
        return v2.functional.horizontal_flip(image) if torch.rand(()) < 0.5 else image


def processes() -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def cpu_seconds() -> dict[int, float]:
    found = {}
    for process in processes():
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


def memory_mib() -> float:
    """What these processes hold for themselves, and what is shared between them counted once (Ray's
    object store).
    """
    total = 0
    for process in processes():
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / 2**20


def measure(run: Callable[[], int]) -> tuple[float, float]:
    """(images/s, images a CPU second) of a call that returns how many images it made."""
    before, start = cpu_seconds(), time.perf_counter()
    count = run()
    elapsed, after = time.perf_counter() - start, cpu_seconds()
    used = sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())
    return count / elapsed, count / used


def count_of(batches: Iterator[Batch]) -> int:
    return sum(len(batch.image_ids) for batch in batches)


def stream_of(shard_set: index.ShardSet, **settings) -> Stream:
    return Stream(
        shard_set,
        rank=0,
        **{
            "batches": [BATCH],
            "canvases": [CANVAS],
            "seed": 0,
            "augmentation": {"flip": 0.5},
            "threads": THREADS,
        }
        | settings,
    )


def table(results: dict[str, list[tuple[float, float]]], *, base: str) -> None:
    print(f"\n{'':58}{'img/s':>22}{'img / CPU s':>22}{'ratio, wall':>14}{'ratio, CPU':>12}")
    for name, measured in results.items():
        columns = []
        for place in (0, 1):
            values = sorted(m[place] for m in measured)
            columns.append(f"{statistics.median(values):.3g} ({values[0]:.3g}..{values[-1]:.3g})")
        # Ratios within a round, so that a slow minute of the machine is in both.
        ratios = [
            statistics.median(
                m[place] / b[place] for m, b in zip(measured, results[base], strict=True)
            )
            for place in (0, 1)
        ]
        print(
            f"{name:58}{columns[0]:>22}{columns[1]:>22}{ratios[0]:>14.2f}{ratios[1]:>12.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--data", help="s3://bucket/prefix for the shards; unset: a local folder")
    parser.add_argument(
        "--parts", nargs="+", choices=("rates", "epochs", "train"), default=["rates", "epochs"]
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="ingest-") as folder:
        uri = given.data or folder
        shard_set = write_set(uri, given.images)
        connect()
        if "rates" in given.parts:
            compare(shard_set, folder, given.rounds)
        if "epochs" in given.parts:
            epochs(shard_set, given.epochs)
        if "train" in given.parts:
            train(shard_set, given.rounds)
        if given.data:
            files.delete_folder(uri)


def compare(shard_set: index.ShardSet, folder: str, rounds: int) -> None:
    some = [shard_set.locate_group(group) for group in range(min(8, len(shard_set.rows_per_group)))]
    held = [row for place in some for row in marked(read.read_row_group(place))]
    # A forked process cannot use the S3 client of its parent: it gets empty answers, which the
    # digests then refuse.
    start = "spawn" if is_remote(shard_set.uri) else "fork"
    settings = dict(num_workers=2, persistent_workers=True, multiprocessing_context=start)
    loader = torch.utils.data.DataLoader(
        Rows(shard_set), batch_size=BATCH, collate_fn=collate, **settings
    )
    every_row = datasets.planned_rows(
        shard_set, epoch_plan.units(np.arange(shard_set.num_rows), shard_set.rows_per_group)
    )
    for number, row in enumerate(datasets.iterate(every_row)):
        with open(os.path.join(folder, f"{number}.jpg"), "wb") as file:
            file.write(row["image"])
    usual = torch.utils.data.DataLoader(
        Files(folder, shard_set.num_rows),
        batch_size=BATCH,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
    )
    plain = stream_of(shard_set)
    contenders: dict[str, Callable[[int], int]] = {
        "decoder alone, one thread, in memory": lambda e: sum(
            len(decode_image(row["image"])) > 0 for row in held
        ),
        "decode + augment alone, one thread, in memory": lambda e: len(
            [sampler(e).sample(row) for row in held]
        ),
        "plain threads, no Ray": lambda e: count_of(threads_alone(shard_set, e)),
        "torch DataLoader, 2 workers, the same reads and samples": lambda e: count_of(iter(loader)),
        "torch DataLoader, 2 workers, as it is mostly written": lambda e: sum(
            len(images) for images in usual
        ),
        "our stream, decode in threads": lambda e: count_of(plain.epoch(e, [(0, plain.places)])),
        "our stream, decode in tasks": lambda e: count_of(
            stream_of(shard_set, decode="tasks").epoch(e, [(0, plain.places)])
        ),
    }
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            measured = measure(lambda run=run, number=number: run(number))
            if number:  # the first round warms up: Ray's processes, the page cache
                results[name].append(measured)
    table(results, base="plain threads, no Ray")


def epochs(shard_set: index.ShardSet, count: int) -> None:
    """First batch of a warm epoch, the gap between two epochs, memory from epoch to epoch."""
    idle = memory_mib()
    firsts, gaps, peaks = [], [], []
    for epoch in range(5):
        start = time.perf_counter()
        batches = stream_of(shard_set).epoch(epoch, [(0, shard_set.num_rows)])
        next(batches)
        firsts.append(time.perf_counter() - start)
        batches.close()
    print(
        f"\nfirst batch of a warm epoch, nothing prepared: median {statistics.median(firsts):.2f} s"
        f" ({min(firsts):.2f}..{max(firsts):.2f})"
    )
    following = stream_of(shard_set, epochs=count)
    last = None
    for epoch in range(count):
        held = []
        for number, _ in enumerate(following.epoch(epoch, [(0, shard_set.num_rows)])):
            if number == 0 and last is not None:
                gaps.append(time.perf_counter() - last)
            if number % 16 == 0:
                held.append(memory_mib())
            # What a training step would take, so that the stream is not what is waited for.
            time.sleep(0.03)
            last = time.perf_counter()
        peaks.append(max(held))
    if gaps:
        print(
            "from the last batch of an epoch to the first of the next: median"
            f" {statistics.median(gaps):.3f} s (up to {max(gaps):.3f})"
        )
        print(
            "peak memory of all processes by epoch, MiB:",
            " ".join(f"{peak:.0f}" for peak in peaks),
            f"of which {idle:.0f} before the first",
        )
    for window in (epoch_plan.WINDOW, 4 * epoch_plan.WINDOW):
        held = [
            memory_mib()
            for number, _ in enumerate(
                stream_of(shard_set, window=window).epoch(0, [(0, shard_set.num_rows)])
            )
            if number % 8 == 4
        ]
        print(f"windows of {window} row groups: at most {max(held):.0f} MiB", flush=True)


def train(shard_set: index.ShardSet, rounds: int) -> None:
    """The same training steps on the stream and on one batch in memory: a step of seconds, and one
    that asks for ten times as many pictures.
    """
    import step

    torch.set_num_threads(THREADS)
    for canvas, width, steps in ((CANVAS, 128, 4), ((192, 256), 64, 20)):
        small = stream_of(shard_set, batches=[4], canvases=[canvas])
        batch = next(small.epoch(0, [(0, small.places)]))
        results: dict[str, list[tuple[float, float]]] = {
            "one batch in memory": [],
            "the stream": [],
        }
        one = step.our_step(
            batch, backbone="resnet18", classes=3, amp=True, width=width, head_norm="group"
        )
        for number in range(rounds + 1):
            batches = small.epoch(number, [(0, 4 * steps)])
            for name in results:

                def run(
                    name: str = name,
                    batches: Iterator[Batch] = batches,
                    batch: Batch = batch,
                    one: Callable = one,
                    steps: int = steps,
                ) -> int:
                    for _ in range(steps):
                        one(batch if name == "one batch in memory" else next(batches))
                    return 4 * steps

                measured = measure(run)
                if number:
                    results[name].append(measured)
            batches.close()
        print(
            f"\ntraining, ResNet-18, {width} channels, {canvas[1]}x{canvas[0]}, {steps} steps of 4"
            " images"
        )
        table(results, base="one batch in memory")


if __name__ == "__main__":
    main()
