#!/bin/sh
# gpu_packages.sh PYTHON: on Linux with an NVIDIA GPU, the CUDA libraries that the environment's
# TensorFlow computes with. Anywhere else it does nothing: macOS and Windows have no such packages.
set -eu
python=$1

if [ "$(uname -s)" != Linux ] || ! nvidia-smi -L >/dev/null 2>&1; then
    exit 0
fi

version=$("$python" -c 'from importlib.metadata import version; print(version("tensorflow"))')
if ! "$python" -m pip install --disable-pip-version-check --quiet "tensorflow[and-cuda]==$version"; then
    echo "The CUDA libraries were not installed (about 2 GB; see above): the pages will run on the CPU." >&2
    echo "To try again:  $python -m pip install 'tensorflow[and-cuda]==$version'" >&2
fi
