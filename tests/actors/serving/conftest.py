"""The run that is served."""

from pathlib import Path

import pytest

from tests.fakes.serving import slept_run


@pytest.fixture
def run(base_checkpoint, tmp_path) -> Path:
    """A run after its first night."""
    return slept_run(tmp_path / "run", base_checkpoint())
