"""Which code this is: the git commit that a run and a job put on record."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# a submitted job has a copy of the code without .git: who submits says what it was
VARIABLE = "SLEEP_RL_COMMIT"


def commit() -> str | None:
    """The git commit of the code, or None outside a work tree."""
    if os.environ.get(VARIABLE):
        return os.environ[VARIABLE]
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
