"""Images/s of JPEG decoders, of what follows a decoder up to the batch, and of scaled decoding; in
interleaved rounds, of one and of two threads.

    python tests/benchmarks/decode.py [--folder data/images --height 384 --width 512 --rounds 9]

Without --folder the pictures are photo-like noise of 640x480 px and some 100 kB. Prints Markdown
tables of medians over the rounds. Images per CPU second say what a decoder costs, also where other
work takes the cores; what two threads gain over one says whether it lets go of Python's lock, as
far as there are two cores. A library that is not installed is left out by name.
"""

from __future__ import annotations

import argparse
import glob
import io
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image

from detector.augment import training_sample
from detector.batch import collate
from detector.image import open_image
from detector.placement import evaluation_sample, place_picture

BATCH = 8
SHRINKS = (1, 2, 4, 8)


def photo(height: int, width: int, seed: int) -> Image.Image:
    """Noise from the size of the picture down to the pixel, the finer the weaker."""
    generator = torch.Generator().manual_seed(seed)
    picture = torch.full((1, 3, height, width), 120.0)
    for cell, contrast in ((128, 60), (32, 30), (8, 14), (4, 8)):
        noise = torch.randn(1, 3, height // cell + 2, width // cell + 2, generator=generator)
        picture += contrast * F.interpolate(noise, size=(height, width), mode="bicubic")
    picture += 4 * torch.randn(1, 1, height, width, generator=generator)
    return Image.fromarray(picture[0].permute(1, 2, 0).clamp(0, 255).byte().numpy())


def encoded(picture: Image.Image, *, most_bytes: int) -> bytes:
    """The JPEG of the highest quality that has at most so many bytes."""
    for quality in range(95, 10, -1):
        sink = io.BytesIO()
        picture.save(sink, "JPEG", quality=quality)
        if sink.tell() <= most_bytes:
            return sink.getvalue()
    raise SystemExit(f"no quality gives at most {most_bytes} bytes")


def decoders() -> dict[str, Callable[[bytes, int], np.ndarray]]:
    """(encoded bytes, 1, 2, 4 or 8 times smaller) -> RGB uint8 (H, W, 3), by the name and version
    of the library.
    """

    def pillow(data: bytes, shrink: int) -> np.ndarray:
        with Image.open(io.BytesIO(data)) as picture:
            if shrink > 1:
                picture.draft(None, (picture.width // shrink, picture.height // shrink))
            picture.load()
            return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))

    found: dict[str, Callable[[bytes, int], np.ndarray]] = {f"Pillow {PIL.__version__}": pillow}
    try:
        import torchvision
        from torchvision.io import ImageReadMode, decode_jpeg

        def by_torchvision(data: bytes, shrink: int) -> np.ndarray:
            # It cannot decode smaller.
            return (
                decode_jpeg(
                    torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB
                )
                .permute(1, 2, 0)
                .numpy()
            )

        found[f"torchvision {torchvision.__version__}"] = by_torchvision
    except ImportError:
        print("torchvision is not installed: left out")
    try:
        import simplejpeg

        def by_simplejpeg(data: bytes, shrink: int) -> np.ndarray:
            height, width = simplejpeg.decode_jpeg_header(data)[:2]
            return simplejpeg.decode_jpeg(
                data, "RGB", min_height=-(-height // shrink), min_width=-(-width // shrink)
            )

        found["simplejpeg"] = by_simplejpeg
    except ImportError:
        print("simplejpeg is not installed: left out")
    try:
        import cv2

        cv2.setNumThreads(1)
        flags = {
            1: cv2.IMREAD_COLOR_RGB,
            **{shrink: getattr(cv2, f"IMREAD_REDUCED_COLOR_{shrink}") for shrink in SHRINKS[1:]},
        }

        def by_opencv(data: bytes, shrink: int) -> np.ndarray:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags[shrink])
            # Smaller, it knows only the other order of colours.
            return pixels if shrink == 1 else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)

        found[f"OpenCV {cv2.__version__}"] = by_opencv
    except ImportError:
        print("opencv-python-headless is not installed: left out")
    return found


def rate(
    function: Callable[[Any], Any], items: Sequence[Any], *, pool: ThreadPoolExecutor | None = None
) -> tuple[float, float]:
    """(items per second, items per CPU second of the process)"""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in map(function, items) if pool is None else pool.map(function, items):
        pass
    return len(items) / (time.perf_counter() - wall), len(items) / (time.process_time() - cpu)


def compare(
    functions: dict[Any, Callable[[Any], Any]], items: Sequence[Any], *, rounds: int
) -> dict[Any, tuple[float, float, float]]:
    """By key: images/s, images per CPU second, images/s of two threads; medians of the rounds."""
    seen: dict[Any, list[tuple[float, float, float]]] = {name: [] for name in functions}
    with ThreadPoolExecutor(2) as pool:
        for function in functions.values():
            function(items[0])
        for _ in range(rounds):
            for name, function in functions.items():
                alone = rate(function, items)
                seen[name].append((*alone, rate(function, items, pool=pool)[0]))
    return {
        name: tuple(statistics.median(values) for values in zip(*figures, strict=True))
        for name, figures in seen.items()
    }


def print_table(title: str, figures: dict[str, tuple[float, float, float]], reference: str) -> None:
    print(
        f"\n| {title} | images/s | per CPU second | ratio | two threads, images/s | gain"
        " |\n|---|---|---|---|---|---|"
    )
    for name, (alone, cpu, two) in figures.items():
        print(
            f"| {name} | {alone:.1f} | {cpu:.1f} | {cpu / figures[reference][1]:.2f} | {two:.1f} |"
            f" {two / alone:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", help="of real JPEGs, the first 64 of which are taken")
    parser.add_argument("--height", type=int, default=384)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.set_num_threads(1)
    canvas = (options.height, options.width)
    if options.folder:
        files = [
            open(path, "rb").read()
            for path in sorted(glob.glob(os.path.join(options.folder, "*.jp*g")))[:64]
        ]
        if not files:
            raise SystemExit(f"{options.folder}: no *.jpg or *.jpeg in it")
    else:
        files = [encoded(photo(480, 640, seed), most_bytes=100_000) for seed in range(16)]
    found = decoders()
    reference = next(iter(found))
    sides = " ".join(
        f"{width}x{height}"
        for height, width in sorted({open_image(data).shape[:2] for data in files})[:3]
    )
    print(
        f"{len(files)} JPEGs of {sides} px, {sum(map(len, files)) / len(files) / 1000:.0f} kB each,"
        f" {platform.processor() or platform.machine()},"
    )
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, {options.rounds} rounds interleaved")
    for name, decode in found.items():
        if not all(np.array_equal(decode(data, 1), found[reference](data, 1)) for data in files):
            print(f"{name}: other pixels than {reference}")

    whole = {name: lambda data, decode=decode: decode(data, 1) for name, decode in found.items()}
    print_table(
        "decoder",
        compare(
            whole | {"ours": lambda data: open_image(data).pixels()}, files, rounds=options.rounds
        ),
        reference,
    )

    random = np.random.default_rng(0)
    boxes, labels = np.array([[10, 10, 90, 90]] * 8, np.float32), np.zeros(8, np.int64)

    def train(data: bytes) -> Any:
        return training_sample(
            open_image(data),
            boxes,
            labels,
            1,
            canvas=canvas,
            generator=random.spawn(1)[0],
            flip=0.5,
            scale_min=0.8,
            scale_max=1.25,
        )

    ways: dict[str, Callable[[bytes], Any]] = {
        "decoded by ours": lambda data: open_image(data).pixels(),
        "evaluation sample": lambda data: evaluation_sample(open_image(data), 1, canvases=[canvas]),
        "training sample: scale 0.8..1.25, flip 0.5": train,
    }
    for name, decode in found.items():
        ways[f"evaluation sample with {name}"] = lambda data, decode=decode: evaluation_sample(
            decode(data, 1), 1, canvases=[canvas]
        )
    print_table(
        f"JPEG to {canvas[0]}x{canvas[1]}",
        compare(ways, files, rounds=options.rounds),
        "decoded by ours",
    )
    samples = [train(files[i % len(files)]) for i in range(BATCH)]
    batched = BATCH * statistics.median(
        rate(collate, [samples] * 9)[1] for _ in range(options.rounds)
    )
    print(f"\n{BATCH} samples into a batch: {batched:.0f} images per CPU second")

    large = encoded(photo(3000, 4000, 0), most_bytes=3_000_000)
    print(
        f"\n4000x3000 px, {len(large) / 1e6:.1f} MB, CPU ms\n\n| decoder | whole | 1/2 | 1/4 | 1/8"
        " |\n|---|---|---|---|---|"
    )
    for name, decode in found.items():
        scales = {
            shrink: lambda data, shrink=shrink, decode=decode: decode(data, shrink)
            for shrink in SHRINKS
        }
        if name.startswith("torchvision"):
            scales = {1: scales[1]}
        times = {
            shrink: f"{1000 / cpu:.0f}"
            for shrink, (_, cpu, _) in compare(scales, [large], rounds=5).items()
        }
        print(f"| {name} | {' | '.join(times.get(shrink, '-') for shrink in SHRINKS)} |")
    onto = {
        "decoded as small as it may be": lambda data: place_picture(
            open_image(data), canvas=canvas, scale=0.125
        ),
        "decoded whole": lambda data: place_picture(
            open_image(data).pixels(), canvas=canvas, scale=0.125
        ),
    }
    for name, (_, cpu, _) in compare(onto, [large], rounds=5).items():
        print(f"\nonto {canvas[0]}x{canvas[1]} px, {name}: {1000 / cpu:.0f} CPU ms")


if __name__ == "__main__":
    main()
