"""Print the results of commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable


def print_answer(text: object) -> None:
    """Print the result of a command."""
    print_lines([text])


def print_lines(texts: Iterable[object]) -> None:
    """Print texts one by one; stop silently if the reader, such as `head`, closes the pipe."""
    try:
        for text in texts:
            try:
                print(text, flush=True)
            except UnicodeEncodeError:
                # an unpaired surrogate in a record, or an ASCII-only terminal
                encoding = sys.stdout.encoding
                print(str(text).encode(encoding, "replace").decode(encoding), flush=True)
    except BrokenPipeError:
        # otherwise Python flushes into the closed pipe at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
