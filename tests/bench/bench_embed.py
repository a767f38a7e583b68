"""Embedding many images: memory, time, and the second run from the cache; import time.

Run with ``python tests/bench/bench_embed.py``; it prints tables. The images are small and the
network sees them at 32 pixels, so that 20,000 take minutes; the path is that of
``python -m cmlearn embed``.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = (2_000, 20_000)

EMBED = """
import json, sys, time
import cmlearn.baseline
from cmlearn.__main__ import main
from cmlearn.image import PretrainedCNN
from cmlearn.runtime import peak_memory

cmlearn.baseline.build_image_encoder = lambda *name, **options: PretrainedCNN(image_size=32)
started = time.perf_counter()
assert main(["embed", sys.argv[1], "--out", sys.argv[2]]) == 0
seconds = time.perf_counter() - started
print(json.dumps([seconds, peak_memory() / 2**20, "keras" in sys.modules]))
"""


def write_images(folder: Path, n: int) -> None:
    """Write n different pictures of 24 x 24 pixels."""
    rng = np.random.default_rng(n)
    folder.mkdir()
    for number in range(n):
        pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png", compress_level=1)


def embed(folder: Path, cache: Path) -> tuple[float, float, bool]:
    """Return seconds, peak MiB and whether Keras was imported, of a process that embeds."""
    run = subprocess.run(
        [sys.executable, "-c", EMBED, folder, folder.with_suffix(".parquet")],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"CMLEARN_CACHE": str(cache)},
    )
    return tuple(json.loads(run.stdout.splitlines()[-1]))


def import_seconds(statement: str) -> float:
    """Return the least time of three that a new process takes for a statement."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    """Print the tables."""
    print(f"{'images':>8}{'run':>8}{'seconds':>10}{'ms/image':>10}{'peak MiB':>10}  Keras imported")
    first, again = {}, {}
    with tempfile.TemporaryDirectory() as place:
        for n in SIZES:
            folder, cache = Path(place) / str(n), Path(place) / f"cache-{n}"
            write_images(folder, n)
            cache.mkdir()
            first[n], again[n] = embed(folder, cache), embed(folder, cache)
            for name, (seconds, peak, keras) in [("first", first[n]), ("second", again[n])]:
                print(
                    f"{n:8}{name:>8}{seconds:10.1f}{1000 * seconds / n:10.2f}{peak:10.0f}  {keras}"
                )
    small, large = SIZES
    more = (first[large][0] - first[small][0]) / (large - small)
    print(f"peak memory, {large} to {small} images: {first[large][1] / first[small][1]:.2f} x")
    print(f"time for each further image, to that of the first {small}: "
          f"{more * small / first[small][0]:.2f} x")  # fmt: skip
    print(f"second run of {large}: {first[large][0] / again[large][0]:.1f} x as fast")
    seconds = import_seconds("import cmlearn") - import_seconds("pass")
    print(f"import cmlearn: {seconds:.3f} s beyond Python's own start")


if __name__ == "__main__":
    main()
