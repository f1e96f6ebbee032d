# make demo: everything from a bare Python to pictures. The other targets: setup, test, train, bench, bench-gpu, ablation,
# tables, lint, doctor, clean.
PYTHON ?= python3
CONFIG ?= configs/default.yaml
RUN ?= runs/default
BIN := .venv/bin

.PHONY: setup demo test train data-given bench bench-gpu ablation tables pictures-given lint doctor clean
setup: .venv/ready

# the stamp is written last, so that an interrupted set-up is taken up again
.venv/ready: setup.py
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

test: setup
	$(BIN)/python -m pytest

train: data-given setup
	$(if $(GPUS),mpirun -np $(GPUS) --bind-to none) $(BIN)/python tools/train.py all --config "$(CONFIG)" --data "$(DATA)" --run "$(RUN)" $(if $(RESUME),--resume)

data-given:
	@if [ -z "$(DATA)" ]; then echo "error: where is the data set? make train DATA=/path/to/dataset" >&2; exit 2; fi

# on a quiet machine; PyTorch's rows where it is installed: .venv/bin/pip install torch
bench: setup
	$(BIN)/python benchmarks/cpu.py

bench-gpu: setup
	$(BIN)/python benchmarks/gpu.py

# DATA holds test/, train/ and val/ (the real photos of test/'s label maps); or each by its own name, REAL= for none
LABELS ?= $(DATA)/test
REFERENCES ?= $(DATA)/train
REAL ?= $(if $(DATA),$(DATA)/val)
ablation: pictures-given setup
	$(BIN)/python benchmarks/ablation.py --labels "$(LABELS)" --references "$(REFERENCES)" $(if $(REAL),--real "$(REAL)") \
	  $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)") $(if $(SEGMENTER),--segmenter "$(SEGMENTER)") $(if $(LIMIT),--limit $(LIMIT)) $(if $(ONLY),--only $(ONLY))

# of the models that the README's commands train, and of the package's weights
tables: pictures-given setup
	$(BIN)/python benchmarks/tables.py --labels "$(LABELS)" --references "$(REFERENCES)" $(if $(REAL),--real "$(REAL)") \
	  --model "GauGAN=runs/gaugan/weights" --model "CLADE=runs/clade/weights" \
	  --model "IIDM=runs/default/weights" --model "IIDM, default weights=default"

pictures-given:
	@if [ -z "$(DATA)" ] && { [ "$(LABELS)" = /test ] || [ "$(REFERENCES)" = /train ]; }; then \
	  echo "error: where are the pictures? make $(firstword $(MAKECMDGOALS)) DATA=/path/to/data (test/, train/, val/), or LABELS= REFERENCES= REAL=" >&2; exit 2; fi

lint: setup
	$(BIN)/python -m ruff check .

doctor: setup
	$(BIN)/python tools/doctor.py

clean:
	rm -rf .venv build dist demo *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
