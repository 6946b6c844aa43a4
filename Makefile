# make demo: trains RC³ on generated scenes and prints its scores.  make demo-long: longer, until re-ranking helps.
# make tasks: fine-tunes the demo's model on the five tasks in miniature.  make test: runs the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?= -n 2 --dist loadfile

.PHONY: demo demo-long tasks test lint clean

demo: $(VENV)/run.done
	rm -rf runs/demo
	$(BIN)/python launch/train.py --config=configs/rc3_demo.py --workdir=runs/demo

demo-long: $(VENV)/run.done
	rm -rf runs/demo_long
	$(BIN)/python launch/train.py --config=configs/rc3_demo.py:steps=2000 --config.objective.weights.itm=2 \
		--workdir=runs/demo_long

tasks: $(VENV)/run.done
	test -f runs/demo/scores.json || $(MAKE) demo
	$(BIN)/python launch/iglue.py --from=runs/demo --data=miniature --workdir=runs/demo_tasks

test: $(VENV)/dev.done lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/run.done: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

$(VENV)/dev.done: $(VENV)/run.done requirements-dev.txt
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .cache runs
