# Two commands: `make study` (train a small ladder, fit its laws, write a report) and `make test`.

PYTHON ?= python3
STUDY ?= launch/studies/quickstart.toml
DATA ?= data/mathematics
RESULTS ?= results

PY := .venv/bin/python
# Written last, so that an install which was killed is noticed and made anew.
INSTALLED := .venv/.installed

.PHONY: study photos install test test-long lint clean

study: install
	$(PY) -m data_prep build mathematics --raw generator --out $(DATA) --rows 4500 --fractions 0.9,0.05,0.05 --seed 0
	$(PY) -m slurm submit $(STUDY) --cluster local --data $(DATA) --results $(RESULTS) --wait
	$(PY) -m analysis report $(RESULTS)/$(basename $(notdir $(STUDY))) --out $(RESULTS)/$(basename $(notdir $(STUDY)))

# The same for pictures of yours: make photos RAW=/path/to/a/folder/or.tar
photos: install
	@test -n "$(RAW)" || { echo "RAW is not given; wanted a folder or tar of pictures: make photos RAW=/path" >&2; exit 2; }
	$(PY) -m data_prep build image-8x8 --raw "$(RAW)" --out data/image-8x8
	$(PY) -m slurm submit launch/studies/photos-8x8.toml --cluster local --data data/image-8x8 --results $(RESULTS) --wait
	$(PY) -m analysis report $(RESULTS)/photos-8x8 --out $(RESULTS)/photos-8x8

install: $(INSTALLED)

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("$(PYTHON) is Python %d.%d; wanted 3.11 or newer. Name one: make PYTHON=python3.11" % sys.version_info[:2])'
	test -e $@ || $(PYTHON) -m venv --clear .venv
	@rm -f $@
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

test: install
	@$(MAKE) --silent browser
	$(PY) -m pytest

test-long: install
	@$(MAKE) --silent browser
	$(PY) -m pytest -m "long or not long"

# One test opens the report in a real browser: on Debian as root we can install one.
.PHONY: browser
browser:
	@if ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		{ apt-get update && apt-get install --yes --no-install-recommends chromium; } >/dev/null 2>&1 || true; \
	fi

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

clean:
	rm -rf .venv *.egg-info .pytest_cache .ruff_cache .mypy_cache
