"""The git commit of this code, which runs and jobs record."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# environment variable in which `sleep-rl submit` passes the commit, since the code of a job has no
# .git
VARIABLE = "SLEEP_RL_COMMIT"


def commit() -> str | None:
    """Return the git commit of the code, None if it is unknown."""
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
