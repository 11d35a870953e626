# make demo | make test | make test-all | make install
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

.PHONY: demo test test-all install
demo: $(BIN)/.ready
	$(BIN)/sleep-rl run configs/demo.yaml

test: $(BIN)/.ready
	$(BIN)/python -m pytest

test-all: $(BIN)/.ready
	$(BIN)/python -m pytest -m "not gpu"

install: $(BIN)/.ready

$(BIN)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(UV_ENV) $(BIN)/uv pip install --python $(BIN)/python -e '.[cpu,test]'
	touch $@
