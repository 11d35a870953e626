"""Config files in a temporary folder."""

from pathlib import Path

import pytest


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write files to a temporary folder and return their names relative to it."""
    monkeypatch.chdir(tmp_path)

    def to(text: str | bytes = "run: {name: t}", name: str = "c.yaml") -> str:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    return to
