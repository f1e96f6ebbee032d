# make demo: everything from a bare Python to pictures. make paint: draw in the browser. make page: the same as a static
# page. The other targets: setup, check (the quick tests), test (all), lint, docs, train, bench, bench-gpu, ablation,
# tables, doctor, clean.
PYTHON ?= python3
CONFIG ?= configs/default.yaml
RUN ?= runs/default
BIN := .venv/bin

.PHONY: setup demo paint page check test lint docs train data-given bench bench-gpu ablation tables pictures-given doctor clean
setup: .venv/ready

# the stamp is written last, so that an interrupted set-up is taken up again
.venv/ready: pyproject.toml setup.py
	@python=; for p in "$(PYTHON)" python3.12 python3.11 python3.10; do \
	  if "$$p" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; \
	  then python=$$p; break; fi; done; \
	if [ -z "$$python" ]; then \
	  echo "error: no Python 3.10, 3.11 or 3.12 here; install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 2; fi; \
	if ! "$$python" -m venv .venv; then \
	  echo "error: $$python cannot make a virtual environment; apt install python3-venv" >&2; exit 2; fi
	$(BIN)/python -m pip install --quiet -e '.[test]'
	@touch $@

demo: setup
	$(BIN)/python tools/infer.py --input_path examples/test --img_path examples/train --output_path demo/results --overview demo/overview.jpg
	@echo "The pictures are in demo/results/, all of them on one sheet: demo/overview.jpg"

# draw in the browser; PAINT="--port 9000" and other options of `jiidm paint --help`
paint: .venv/painter-ready
	$(BIN)/python tools/paint.py $(PAINT)

.venv/painter-ready: .venv/ready
	$(BIN)/python -m pip install --quiet -e '.[painter]'
	@touch $@

# the painter as a folder for any static server, in PAGE; needs npm
PAGE ?= page
page: .venv/page-ready
	$(BIN)/python tools/page.py -o "$(PAGE)"

.venv/page-ready: .venv/ready
	$(BIN)/python -m pip install --quiet -e '.[onnx,painter]'
	@touch $@

# the quick tests; the first run compiles kernels. WORKERS: processes that share the test files
WORKERS ?= 2
check: setup
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow and not mpi and not baselines and not bench"

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: setup
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest -q tests/test_floors.py

# warnings are errors; the pages are in docs/_build/html
docs: .venv/docs-ready
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

.venv/docs-ready: .venv/ready
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	@touch $@

train: data-given setup
	$(if $(GPUS),mpirun -np $(GPUS) --bind-to none) $(BIN)/python tools/train.py all --config "$(CONFIG)" --data "$(DATA)" --run "$(RUN)" $(if $(RESUME),--resume)

data-given:
	@if [ -z "$(DATA)" ]; then echo "error: where is the data set? make train DATA=/path/to/dataset" >&2; exit 2; fi

# on a quiet machine; PyTorch's rows where it is installed: .venv/bin/pip install torch
bench: setup
	$(BIN)/python -m benchmarks.cpu

bench-gpu: setup
	$(BIN)/python -m benchmarks.gpu

# DATA holds test/, train/ and val/ (the real photos of test/'s label maps); or each by its own name, REAL= for none
LABELS ?= $(DATA)/test
REFERENCES ?= $(DATA)/train
REAL ?= $(if $(DATA),$(DATA)/val)
ablation: pictures-given setup
	$(BIN)/python -m benchmarks.ablation --labels "$(LABELS)" --references "$(REFERENCES)" $(if $(REAL),--real "$(REAL)") \
	  $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)") $(if $(SEGMENTER),--segmenter "$(SEGMENTER)") $(if $(LIMIT),--limit $(LIMIT)) $(if $(ONLY),--only $(ONLY))

# of GauGAN and CLADE, as `jiidm train` writes them, and of the package's weights
tables: pictures-given setup
	$(BIN)/python -m benchmarks.tables --labels "$(LABELS)" --references "$(REFERENCES)" $(if $(REAL),--real "$(REAL)") \
	  $(if $(DATA),--training "$(DATA)/train") --model "GauGAN=runs/gaugan/weights" --model "CLADE=runs/clade/weights" \
	  --model "IIDM=default" --minutes "IIDM=315"  # half of those of one core in its model card

pictures-given:
	@if [ -z "$(DATA)" ] && { [ "$(LABELS)" = /test ] || [ "$(REFERENCES)" = /train ]; }; then \
	  echo "error: where are the pictures? make $(firstword $(MAKECMDGOALS)) DATA=/path/to/data (test/, train/, val/), or LABELS= REFERENCES= REAL=" >&2; exit 2; fi

doctor: setup
	$(BIN)/python tools/doctor.py

clean:
	rm -rf .venv build dist demo docs/_build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
