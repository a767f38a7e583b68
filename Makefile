# Thin: every target is a command or two that also work by hand (README, "Without make").
# `make book` and `make test` set up .venv themselves; nothing is installed outside it.

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: help book test lint format lab notebooks fetch bench test-browser privacy-check \
    federated-check colab-check assignments grade course-check newest test-newest \
    newest-check pins clean

help:
	@echo "make book          run every page and build the HTML into _build/html"
	@echo "make test          the tests"
	@echo "make lab           JupyterLab on the pages' notebooks"
	@echo "make notebooks     write the .ipynb beside each page anew"
	@echo "make lint          ruff, and the notebooks in step with their pages"
	@echo "make test-browser  the built book in Chromium; screenshots into _build/screenshots"
	@echo "make bench         speed and memory, as ratios against a peer"
	@echo "make fetch         data and weights, ahead of time"
	@echo "make privacy-check    an environment with another accountant of privacy, and the tests that ask it"
	@echo "make federated-check  the same with Flower"
	@echo "make colab-check      every notebook with Colab's versions; CMLEARN_DATA/colab holds its list"
	@echo "make assignments   students' notebooks, solutions and autograders into _build/assignments"
	@echo "make grade         SUBMISSIONS=folder: grades and feedback into _build/grades/folder"
	@echo "make course-check  a course of thirty made-up submissions, graded"
	@echo "make test-newest   the tests with the newest version of everything"
	@echo "make newest-check  every notebook with the newest versions, twice: lost half-way, then whole"
	@echo "make pins          requirements.txt anew from requirements.in"
	@echo "make clean         remove what was built, keep .venv"

$(READY): requirements.txt pyproject.toml
	@sh tests/make_venv.sh $(VENV)
	$(PY) -m pip install --disable-pip-version-check --quiet -r requirements.txt
	$(PY) -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	@touch $@

book: $(READY)
	@sh tests/gpu_packages.sh $(PY)
	$(VENV)/bin/jupyter-book build . -W --keep-going -n --all

test: $(READY)
	$(PY) -m pytest

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) book/_ext/notebooks.py --check

format: $(READY)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

notebooks: $(READY)
	$(PY) book/_ext/notebooks.py

lab: $(READY)
	$(VENV)/bin/jupyter lab --notebook-dir=book

fetch: $(READY)
	$(PY) -m cmlearn fetch --all

bench: $(READY)
	@for script in tests/bench/bench_*.py; do echo "== $$script"; $(PY) $$script || exit 1; done

test-browser: $(READY)
	tests/browser/run $(PY)

# Colab's own list of packages; what has no version for this Python is named in left-out.txt.
colab-check: $(READY)
	@sh tests/make_venv.sh .venv-colab
	.venv-colab/bin/python tests/colab/environment.py "$(CMLEARN_DATA)/colab/pip-freeze.gpu.txt"
	.venv-colab/bin/python tests/colab/check.py

assignments: $(READY)
	$(PY) -m cmlearn.coursework.build

grade: $(READY)
	@test -n "$(SUBMISSIONS)" || { echo "make grade SUBMISSIONS=folder"; exit 2; }
	$(PY) -m cmlearn.coursework.grade "$(SUBMISSIONS)"

course-check: assignments
	$(PY) tests/coursework/course.py

newest:
	@sh tests/make_venv.sh .venv-newest
	.venv-newest/bin/python -m pip install --disable-pip-version-check --quiet --upgrade \
	    --upgrade-strategy eager --editable \
	    ".[emoji,weights,huggingface,interpretability,onnx,security,ray,test]" \
	    beautifulsoup4 ipykernel jupytext nbclient nbformat pybtex pyyaml

test-newest: newest
	.venv-newest/bin/python -m pytest

newest-check: newest
	.venv-newest/bin/python tests/colab/check.py --restart

# Both libraries want older versions of packages that the book needs (attrs, protobuf).
privacy-check: $(READY)
	@sh tests/make_venv.sh .venv-privacy
	.venv-privacy/bin/python -m pip install --disable-pip-version-check --quiet dp-accounting==0.6.0
	$(PY) -m pytest -n 0 tests/test_privacy.py

federated-check: $(READY)
	@sh tests/make_venv.sh .venv-flower
	.venv-flower/bin/python -m pip install --disable-pip-version-check --quiet \
	    "flwr[simulation]==1.42.0"
	$(PY) -m pytest -n 0 tests/test_federated.py

pins:
	@sh tests/make_venv.sh _build/pins-venv
	_build/pins-venv/bin/python -m pip install --disable-pip-version-check --quiet -r requirements.in
	@{ sed -n '/^#/p;/^[^#]/q' requirements.txt; \
	   _build/pins-venv/bin/python -m pip freeze --all --exclude-editable | grep -v "^pip=="; } > _build/requirements.txt
	mv _build/requirements.txt requirements.txt

clean:
	rm -rf _build .pytest_cache .ruff_cache .hypothesis
