"""What features of a thousand to a hundred thousand generated pictures cost, on one core and two.

The processes that are timed are limited to cores: one for the local engine and one for each worker.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cmlearn.image import ColorHistogram, PretrainedCNN
from cmlearn.runtime import save_run
from cmlearn.scaling import measure_costs

SOURCES = [
    f"cmlearn/{module}.py"
    for module in (
        "datasets/_common",
        "datasets/_folder",
        "efficientnet",
        "image",
        "reference/scaling",
        "scaling",
    )
]

SAMPLE, SIZES = 1_000, (10_000, 100_000)
REPEATS = 3
SPEEDUP_PICTURES = 36_000
SIDE = 24  # pixels
CNN_SIDE = 224  # pixels that the network sees

EMBED = """
import json, sys, time
from cmlearn.runtime import peak_memory
from cmlearn.scaling import embed_pairs
from cmlearn.reference.scaling import ENCODERS

data, out, encoder, engine, workers = sys.argv[1:]
started = time.perf_counter()
embed_pairs(data, out, {"image": ENCODERS[encoder]}, engine=engine, workers=int(workers))
seconds = time.perf_counter() - started
print(json.dumps([seconds, time.process_time(), peak_memory() / 2**20]))
"""

ENCODERS = {
    "histogram": ColorHistogram(4, cache=False),
    "cnn": PretrainedCNN(image_size=CNN_SIDE, batch_size=64, cache=False),
}


def write_pictures(path: Path, n: int) -> Path:
    """Write n different small JPEG pictures into one Parquet file, as the Hub stores them."""
    import cv2
    import pyarrow as pa
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    field = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    with pyarrow.parquet.ParquetWriter(path, pa.schema({"image": field})) as writer:
        for first in range(0, n, 1000):
            pixels = rng.integers(0, 256, (min(1000, n - first), SIDE, SIDE, 3), dtype=np.uint8)
            cells = [
                {"bytes": cv2.imencode(".jpg", picture)[1].tobytes(), "path": None}
                for picture in pixels
            ]
            writer.write_table(pa.table({"image": pa.array(cells, field)}))
    return path


def embed(
    data: Path, *, encoder: str = "histogram", engine: str = "local", cores: int = 1
) -> dict[str, float]:
    """Embed in a new process that is limited to some cores; return what it took."""
    out = data.with_name("features.parquet")
    some = sorted(os.sched_getaffinity(0))[:cores]
    single = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", EMBED, data, out, encoder, engine, str(cores)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | single,
        preexec_fn=lambda: os.sched_setaffinity(0, some),
    )
    out.unlink()
    seconds, processor, peak = json.loads(run.stdout.splitlines()[-1])
    return {"seconds": seconds, "processor": processor, "peak_mib": peak}


def compare_engines(place: Path, repeats: int = REPEATS) -> list[dict[str, float]]:
    """Time one core and two workers in turn, so that a busy minute falls on both.

    The start is measured on two chunks of pictures and taken off: what is left is the pace.
    """
    few = write_pictures(place / "few.parquet", 512)
    many = write_pictures(place / "many.parquet", SPEEDUP_PICTURES)
    rows = []
    for _ in range(repeats):
        row = {"load": os.getloadavg()[0]}
        for engine, cores in (("local", 1), ("ray", 2)):
            start = embed(few, encoder="cnn", engine=engine, cores=cores)["seconds"]
            row[engine] = embed(many, encoder="cnn", engine=engine, cores=cores)["seconds"]
            row[f"{engine}_few"] = start
        row["ratio"] = row["local"] / row["ray"]
        row["pace_ratio"] = (row["local"] - row["local_few"]) / (row["ray"] - row["ray_few"])
        rows.append(row)
    return rows


def run(path: Path) -> None:
    """Measure and store."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        sample = write_pictures(place / "sample.parquet", SAMPLE)
        costs = [measure_costs(sample, ENCODERS["histogram"])._asdict() for _ in range(REPEATS)]
        local = {str(SAMPLE): [embed(sample) for _ in range(REPEATS)]}
        memory = {str(SAMPLE): embed(sample, engine="ray", cores=2)}
        for n in SIZES:
            data = write_pictures(place / f"{n}.parquet", n)
            local[str(n)] = [embed(data) for _ in range(REPEATS)]
            memory[str(n)] = embed(data, engine="ray", cores=2)
            data.unlink()
        engines = compare_engines(place)
    results = {
        "sample": SAMPLE,
        "repeats": REPEATS,
        "pictures": {"side": SIDE, "cnn_side": CNN_SIDE, "speedup": SPEEDUP_PICTURES},
        "costs": costs,
        "local": local,
        "driver": memory,
        "engines": engines,
        "minutes": (time.monotonic() - started) / 60,
    }
    save_run(path, results, sources=SOURCES)
