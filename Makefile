# make demo | make demo-documents | make quick | make test | make test-all | make lint | make install
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin

# A CPU build of torch comes from a local wheel folder where pip has one (PIP_FIND_LINKS), else from PyTorch's own
# CPU index, which uv knows by name. `unset UV_PYTHON`: it would beat the virtual environment.
ifdef PIP_FIND_LINKS
  UV_ENV := env -u UV_PYTHON UV_FIND_LINKS="$(PIP_FIND_LINKS)"
else
  UV_ENV := env -u UV_PYTHON UV_TORCH_BACKEND=cpu
endif

# Some images set it: every process would compile torch, vLLM and Ray anew from their sources.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-world demo-documents quick test test-all lint install
demo: $(BIN)/.ready
	$(BIN)/sleep-rl run configs/demo.yaml

demo-world: demo

# a life of two days: what is new, changed or deleted in the second folder is the second day
demo-documents: $(BIN)/.ready
	$(BIN)/sleep-rl run configs/demo_documents.yaml task.documents.path=configs/example/day1
	$(BIN)/sleep-rl run configs/demo_documents.yaml task.documents.path=configs/example/day2

# Two processes, each with whole files (tests/distribution.py says which files stay together). More processes would
# not fit beside the engines that tests start. `python -m pytest` runs the same tests one after the other.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# what needs no Ray, no vLLM engine and no DeepSpeed process
quick: $(BIN)/.ready
	$(PYTEST) -m "not stack and not slow and not gpu"

test: $(BIN)/.ready
	$(PYTEST)

test-all: $(BIN)/.ready
	$(PYTEST) -m "not gpu"

lint: $(BIN)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

install: $(BIN)/.ready

$(BIN)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(UV_ENV) $(BIN)/uv pip install --python $(BIN)/python -e '.[cpu,test]'
	touch $@
