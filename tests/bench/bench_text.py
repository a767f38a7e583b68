"""Opening word vectors: by pip, and from a text file against gensim.

Run with ``python tests/bench/bench_text.py``; it prints a table.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

OPEN = """
import json, re, time
from pathlib import Path
import numpy, pyarrow.parquet
from cmlearn.text import load_word_vectors

def own():
    rollup = Path("/proc/self/smaps_rollup")
    if not rollup.exists():
        return float("nan")
    return int(re.search(r"Anonymous: +(\\d+)", rollup.read_text())[1]) / 1024

before, started = own(), time.perf_counter()
vectors = load_word_vectors({source!r})
vectors["cup"], vectors.index(["cup", "saucer"])
seconds = time.perf_counter() - started
print(json.dumps([seconds, own() - before, own()]))
"""


def open_in_new_process(source: str, cache: str) -> tuple[float, float, float]:
    """Return seconds, and MiB of unshared memory that opening took and that the process has."""
    run = subprocess.run(
        [sys.executable, "-c", OPEN.format(source=source)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"CMLEARN_CACHE": cache},
    )
    return tuple(json.loads(run.stdout))


def write_text_file(path: Path) -> int:
    """Write the bundled vectors the way that glove.*.txt files are written."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from cmlearn.text import load_word_vectors

    glove = load_word_vectors()
    with open(path, "wb") as file:
        for start in range(0, len(glove), 20_000):
            block = glove.vectors[start : start + 20_000]
            numbers = [pc.cast(pa.array(block[:, i]), pa.string()) for i in range(glove.dim)]
            words = glove.words[start : start + 20_000]
            lines = pc.binary_join_element_wise(words, *numbers, " ").to_pylist()
            file.write("".join(line + "\n" for line in lines).encode())
    return len(glove)


def time_gensim(path: Path) -> float:
    """Return the seconds that gensim takes for the same file."""
    from gensim.models import KeyedVectors

    started = time.perf_counter()
    KeyedVectors.load_word2vec_format(str(path), no_header=True)
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "glove.txt"
        n = write_text_file(path)
        pip = open_in_new_process("glove-6b-50d", folder)
        first = open_in_new_process(str(path), folder)
        again = open_in_new_process(str(path), folder)
        gensim = time_gensim(path)
        size = path.stat().st_size / 1e6
    print(f"{n} words, 50 dimensions; the text file has {size:.0f} MB")
    print(f"{'':28}{'seconds':>9}{'own MiB':>9}{'process MiB':>13}{'x gensim':>10}")
    for name, (seconds, own, process) in [
        ("by pip", pip),
        ("text file, first time", first),
        ("text file, from the cache", again),
    ]:
        print(f"{name:28}{seconds:9.2f}{own:9.0f}{process:13.0f}{gensim / seconds:10.1f}")
    print(f"{'gensim, text file':28}{gensim:9.2f}{'':9}{'':13}{1:10.1f}")


if __name__ == "__main__":
    main()
