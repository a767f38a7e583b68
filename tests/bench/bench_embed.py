"""Embedding many images: memory, time, and the second run from the cache; import time.

Run with ``python tests/bench/bench_embed.py``; it prints tables. The path is that of
``python -m cmlearn embed``. For memory and growth the network sees the images at 32 pixels, so that
20,000 take less than a minute; against the cache it runs at its own size, 224 pixels.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

SMALL, MIDDLE, LARGE = 2_000, 11_000, 20_000
REAL = 1_000  # images at full size

EMBED = """
import json, sys, time
import cmlearn.baseline
from cmlearn.__main__ import main
from cmlearn.image import PretrainedCNN
from cmlearn.runtime import peak_memory

encoder = PretrainedCNN(image_size=int(sys.argv[3]) or None)
cmlearn.baseline.build_image_encoder = lambda *name, **options: encoder
started = time.perf_counter()
assert main(["embed", sys.argv[1], "--out", sys.argv[2]]) == 0
seconds = time.perf_counter() - started
print(json.dumps([seconds, time.process_time(), peak_memory() / 2**20, "keras" in sys.modules]))
"""


def write_images(folder: Path, n: int) -> None:
    """Write n different pictures of 24 x 24 pixels."""
    rng = np.random.default_rng(n)
    folder.mkdir()
    for number in range(n):
        pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png", compress_level=1)


class Run(NamedTuple):
    """What a process that embeds took: seconds, processor seconds, MiB."""

    seconds: float
    processor: float
    peak: float
    keras: bool


def embed(folder: Path, cache: Path, image_size: int) -> Run:
    """Run the command in a process of its own and measure it."""
    run = subprocess.run(
        [sys.executable, "-c", EMBED, folder, folder.with_suffix(".parquet"), str(image_size)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"CMLEARN_CACHE": str(cache)},
    )
    return Run(*json.loads(run.stdout.splitlines()[-1]))


def import_seconds(statement: str) -> float:
    """Return the least time of three that a new process takes for a statement."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        times.append(time.perf_counter() - started)
    return min(times)


def measure(place: Path, n: int, image_size: int) -> list[Run]:
    """Embed n images twice, print a line each, and return what `embed` does of both."""
    folder, cache = place / f"{n}-{image_size}", place / f"cache-{n}-{image_size}"
    write_images(folder, n)
    cache.mkdir()
    runs = [embed(folder, cache, image_size) for _ in range(2)]
    for name, run in zip(["first", "second"], runs, strict=True):
        print(
            f"{n:8}{image_size or 224:8}{name:>8}{run.seconds:9.1f}{run.processor:11.1f}"
            f"{run.peak:10.0f}  {run.keras}",
            flush=True,
        )
    return runs


def main() -> None:
    """Print the tables."""
    heads = f"{'images':>8}{'pixels':>8}{'run':>8}{'seconds':>9}{'processor':>11}{'peak MiB':>10}"
    print(f"{heads}  Keras imported")
    with tempfile.TemporaryDirectory() as place:
        (small, _), (middle, _), (large, _) = (
            measure(Path(place), n, 32) for n in (SMALL, MIDDLE, LARGE)
        )
        real, again = measure(Path(place), REAL, 0)
    print(f"peak memory, {LARGE} to {SMALL} images: {large.peak / small.peak:.2f} x")
    # Processor time, because other programs on the machine lengthen the other kind.
    growth = (large.processor - middle.processor) / (middle.processor - small.processor)
    print(f"processor time of the last {LARGE - MIDDLE} images")
    print(f"to that of the {MIDDLE - SMALL} before them: {growth:.2f} x")
    print(f"second run of {REAL} images at full size: {real.seconds / again.seconds:.1f} x as fast")
    seconds = import_seconds("import cmlearn") - import_seconds("pass")
    print(f"import cmlearn: {seconds:.3f} s beyond Python's own start")


if __name__ == "__main__":
    main()
