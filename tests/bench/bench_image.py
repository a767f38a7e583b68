"""Image embedding: throughput beside a bare Keras network and OpenVINO, cache, and memory.

Run it by ``python tests/bench/bench_image.py``; ``--images 300`` sets how many files are embedded.
Each ratio compares two things measured in turns in this one run.
"""

import argparse
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

ROUNDS = 3
SIZE = 224


def main() -> None:
    """Measure and print one line a comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--stream", type=int, nargs=2, default=[2000, 20_000])
    parser.add_argument("--skip-stream", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # Weights come from the user's cache; features go to a new one.
        from cmlearn.efficientnet import weights_file

        weights = weights_file("lite0")
        os.environ["CMLEARN_CACHE"] = folder
        paths = write_photographs(Path(folder) / "photographs", options.images)
        compare_throughput(paths, weights)
        compare_cache(paths, weights, Path(folder))
        if not options.skip_stream:
            compare_memory(Path(folder), *options.stream)


def write_photographs(folder: Path, count: int, size: tuple[int, int] = (320, 240)) -> list[str]:
    """Write cuts of two photographs as JPEG files, all different."""
    folder.mkdir()
    photographs = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    rng, paths = np.random.default_rng(0), []
    width, height = size
    for i in range(count):
        photograph = photographs[i % 2]
        top = rng.integers(photograph.shape[0] - height + 1)
        left = rng.integers(photograph.shape[1] - width + 1)
        cut = photograph[top : top + height, left : left + width].copy()
        cut[0, :4, 0] = i % 256, i // 256 % 256, i // 65_536, 0
        paths.append(str(folder / f"{i}.jpg"))
        Image.fromarray(cut).save(paths[-1], quality=90)
    return paths


def compare_throughput(paths: list[str], weights: Path) -> None:
    """Compare files → features, and pixels → features, with the two peers."""
    from cmlearn.efficientnet import EfficientNetLite
    from cmlearn.image import PretrainedCNN, _network, decode, resize

    bare = EfficientNetLite(fold_batch_norm=False, weights=weights)
    encoder = PretrainedCNN(cache=False)
    network = _network("efficientnet-lite0", None, None)
    pixels = np.stack([resize(decode(path), SIZE) for path in paths])

    def bare_predict(batch_size=32):
        return bare.predict(pixels, batch_size=batch_size, verbose=0)

    def bare_from_files():
        loaded = np.stack([resize(decode(path), SIZE) for path in paths])
        return bare.predict(loaded, verbose=0)

    def ours_on_pixels():
        starts = range(0, len(pixels), encoder.batch_size)
        return np.concatenate(
            [network.features(pixels[i : i + encoder.batch_size]) for i in starts]
        )

    few = min(32, len(paths))
    default = timed(lambda: bare.predict(pixels[:few], verbose=0)) / few * len(paths)
    bare.compile(jit_compile=False)
    rivals = {
        "cmlearn, files": lambda: encoder.transform(paths),
        "Keras predict without XLA, files": bare_from_files,
        "cmlearn, pixels": ours_on_pixels,
        "Keras predict without XLA, pixels": bare_predict,
    }
    openvino = openvino_networks(network.model)
    for name, compiled in openvino.items():
        rivals[name] = functools.partial(run_openvino, compiled, pixels)
    seconds = race(rivals)
    seconds["Keras predict as it is, pixels"] = default
    for name, value in seconds.items():
        print(f"{name:<36} {len(paths) / value:8.1f} images/s")
    ours = seconds["cmlearn, files"]
    report(
        "files: cmlearn / Keras without XLA",
        seconds["Keras predict without XLA, files"] / ours,
        1.2,
    )
    decoded = seconds["Keras predict without XLA, pixels"]
    report("cmlearn, files / Keras, pixels", decoded / ours, 1.2)
    ours = seconds["cmlearn, pixels"]
    report(
        "pixels: cmlearn / Keras without XLA",
        seconds["Keras predict without XLA, pixels"] / ours,
        1.2,
    )
    report("pixels: cmlearn / Keras as it is", default / ours, 1.2)
    for name, compiled in openvino.items():
        report(f"pixels: cmlearn / {name.removesuffix(', pixels')}", seconds[name] / ours, 0.8)
        gap = abs(run_openvino(compiled, pixels[:8]) - network.features(pixels[:8])).max()
        print(f"  (largest difference from its features: {gap:.1e})")


def openvino_networks(model) -> dict:
    """Return the same network compiled by OpenVINO at two precisions, none if it is missing."""
    try:
        import openvino
    except ImportError:
        print("OpenVINO is not installed (pip install openvino): left out.")
        return {}
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, format="tf_saved_model", verbose=False)
        converted = openvino.convert_model(folder)
    hints = {"PERFORMANCE_HINT": "THROUGHPUT"}
    # Left to itself OpenVINO rounds to bfloat16 where the processor can: another computation.
    same = hints | {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = {"OpenVINO float32, pixels": same, "OpenVINO as it is, pixels": hints}
    core = openvino.Core()
    return {name: core.compile_model(converted, "CPU", how) for name, how in compiled.items()}


def run_openvino(network, pixels: np.ndarray, batch_size: int = 8) -> np.ndarray:
    """Return OpenVINO's features, with as many requests in flight as it asks for."""
    import openvino

    queue, parts = openvino.AsyncInferQueue(network), {}
    queue.set_callback(
        lambda request, i: parts.update({i: request.get_output_tensor().data.copy()})
    )
    for start in range(0, len(pixels), batch_size):
        queue.start_async([pixels[start : start + batch_size].astype(np.float32)], start)
    queue.wait_all()
    return np.concatenate([parts[start] for start in sorted(parts)])


def compare_cache(paths: list[str], weights: Path, folder: Path) -> None:
    """Compare the first run with the second, which reads the cache."""
    from cmlearn import image
    from cmlearn.image import PretrainedCNN

    image.weights_file = lambda variant: weights
    encoder = PretrainedCNN()
    encoder.transform([np.zeros((8, 8, 3), np.uint8)])
    first = timed(lambda: encoder.transform(paths))
    second = min(timed(lambda: encoder.transform(paths)) for _ in range(ROUNDS))
    report("cache: second run / first run", first / second, 20)


STREAM = """
import sys, time
from pathlib import Path
import numpy as np
from cmlearn import image
from cmlearn.image import PretrainedCNN
from cmlearn.runtime import peak_memory
weights, folder, count, size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), 64
image.weights_file = lambda variant: weights
import cmlearn.efficientnet
cmlearn.efficientnet.weights_file = image.weights_file
paths = sorted(map(str, folder.iterdir()))
encoder = PretrainedCNN(image_size=size)
encoder.transform([np.full((9, 9, 3), i, np.uint8) for i in range(64)])
start, done = time.perf_counter(), 0
while done < count:
    some = range(done, min(done + 1000, count))
    rows = [Path(paths[i % len(paths)]).read_bytes() + i.to_bytes(4) for i in some]
    done += len(encoder.transform(rows))
print(time.perf_counter() - start, peak_memory() / 2**20)
"""


def compare_memory(folder: Path, few: int, many: int) -> None:
    """Embed few and many images, each in a process of its own, in pieces as the command does.

    The files' bytes are made different by a few bytes behind the picture, so that none is cached.
    Images of 64 pixels keep this short; what is compared does not hang on the size.
    """
    from cmlearn import image

    measured = {}
    for count in (few, many):
        cache = folder / f"stream-{count}"
        run = subprocess.run(
            [sys.executable, "-c", STREAM, str(image.weights_file("lite0")),
             str(folder / "photographs"), str(count)],
            env={**os.environ, "CMLEARN_CACHE": str(cache)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        seconds, mebibytes = map(float, run.stdout.split()[-2:])
        measured[count] = seconds / count, mebibytes
        print(f"{count} images: {1 / measured[count][0]:.1f} images/s, peak {mebibytes:.0f} MiB")
        shutil.rmtree(cache)
    growth = measured[many][1] / measured[few][1] - 1
    slower = measured[many][0] / measured[few][0] - 1
    print(f"peak memory grows by {growth:+.1%} (aim: < 10%), time an image by {slower:+.1%}")


def race(rivals: dict) -> dict[str, float]:
    """Return the best seconds of each of several functions, measured in turns."""
    for rival in rivals.values():
        rival()
    seconds = {name: [] for name in rivals}
    for _ in range(ROUNDS):
        for name, rival in rivals.items():
            seconds[name].append(timed(rival))
    return {name: min(values) for name, values in seconds.items()}


def timed(function) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def report(what: str, ratio: float, aim: float) -> None:
    """Print a ratio beside what it should reach."""
    print(f"{what:<40} {ratio:7.2f} x   (aim: {aim} x) {'' if ratio >= aim else 'MISSED'}")


if __name__ == "__main__":
    main()
