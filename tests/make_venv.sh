#!/bin/sh
# make_venv.sh FOLDER: a virtual environment with the first Python that fits.
# PYTHON=/path/to/python chooses another one.
set -eu
folder=$1

if [ -x "$folder/bin/python" ] && "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi

fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
python=
for name in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
    if "$name" -c "$fits" >/dev/null 2>&1; then
        python=$name
        break
    fi
done
if [ -z "$python" ]; then
    echo "No Python from 3.11 to 3.13 found (tried: ${PYTHON:-python3.13 python3.12 python3.11 python3})." >&2
    for name in ${PYTHON:-python3}; do
        echo "$name is: $("$name" --version 2>&1 || true)" >&2
    done
    echo "Debian/Ubuntu: sudo apt install python3.11 python3.11-venv   macOS: brew install python@3.12" >&2
    echo "or name one:   make book PYTHON=/path/to/python3.12" >&2
    exit 1
fi

rm -rf "$folder"
if ! message=$("$python" -m venv "$folder" 2>&1); then
    rm -rf "$folder"
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "$message" >&2
    echo "$python could not make a virtual environment in $folder." >&2
    echo "Debian and Ubuntu keep that module apart: sudo apt install python$version-venv" >&2
    exit 1
fi
echo "made $folder with $("$python" --version)"
