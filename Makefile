# Two commands: `make study` (train a small ladder, fit its laws, write a report) and `make test`.

PYTHON ?= python3

PY := .venv/bin/python
# Written last, so that an install which was killed is noticed and made anew.
INSTALLED := .venv/.installed

.PHONY: study photos install test test-long lint clean

study: install
	$(PY) -m data_prep build mathematics --raw generator --out data/mathematics --rows 3800 --fractions 0.9,0.06,0.04 --seed 0
	$(PY) -m slurm submit launch/studies/quickstart.toml --cluster local --data data/mathematics --results results --wait --no-report
	$(PY) -m analysis report results/quickstart --out results/quickstart --include mid-schedule

# The same for pictures of yours: make photos RAW=/path/to/a/folder/or.tar
PHOTOS ?= data/image-8x8
BUILD ?=
photos: install
	@test -n "$(RAW)" || { echo "RAW is not given; wanted a folder or tar of pictures: make photos RAW=/path" >&2; exit 2; }
	$(PY) -m data_prep build image-8x8 --raw "$(RAW)" --out "$(PHOTOS)" --fractions 0.9,0.1,0 $(BUILD)
	$(PY) -m slurm submit launch/studies/photos-8x8.toml --cluster local --data "$(PHOTOS)" --results results --wait --no-report
	$(PY) -m analysis report results/photos-8x8 --out results/photos-8x8 --include mid-schedule

install: $(INSTALLED)

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("$(PYTHON) is Python %d.%d; wanted 3.11 to 3.13, which megatron-core is built for. Name one: make PYTHON=python3.12" % sys.version_info[:2])'
	test -e $@ || $(PYTHON) -m venv --clear .venv
	@rm -f $@
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

# The tests on a private Slurm mostly wait, so they run beside the others and are shown after them.
test: install
	@$(MAKE) --silent browser slurm-programs
	@$(MAKE) --silent --keep-going --jobs 2 test-on-slurm test-without-slurm

.PHONY: test-on-slurm test-without-slurm
test-on-slurm:
	@log=$$(mktemp); $(PY) -m pytest tests/slurm > $$log 2>&1; status=$$?; cat $$log; rm $$log; exit $$status

test-without-slurm:
	$(PY) -m pytest --ignore tests/slurm

# Also the long ones. The scenarios on Slurm again and again, with a table: python -m benchmarks.slurm_repeat
test-long: install
	@$(MAKE) --silent browser slurm-programs
	$(PY) -m pytest -m "long or not long"

# One test opens the report in a real browser: on Debian as root we can install one.
.PHONY: browser
browser:
	@if ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		{ apt-get update && apt-get install --yes --no-install-recommends chromium; } >/dev/null 2>&1 || true; \
	fi

# Some tests train on a private Slurm of two nodes, whose programs we can install in the same way.
.PHONY: slurm-programs
slurm-programs:
	@if ! { command -v slurmctld && command -v slurmdbd && command -v munged && command -v mariadbd; } >/dev/null \
		&& command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		{ apt-get update && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
			slurm-wlm slurmdbd munge mariadb-server; } >/dev/null 2>&1 || true; \
	fi

# The same private Slurm to try things on: prints what to export, and stays until Ctrl-C.
.PHONY: slurm-playground
slurm-playground: install
	@$(MAKE) --silent slurm-programs
	@$(PY) -m slurm.playground

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

clean:
	rm -rf .venv *.egg-info .pytest_cache .ruff_cache .mypy_cache
