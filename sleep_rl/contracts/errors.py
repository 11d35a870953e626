"""Exceptions for invalid input and failed runs, and failures as values."""

from __future__ import annotations

from dataclasses import dataclass


class InputError(ValueError):
    """Invalid user input. The message is one line: what, allowed, got, where. Exit code 2."""


class RunError(RuntimeError):
    """The run cannot continue (NaN loss, full disk, dead workers). The message is one line. Exit
    code 1.
    """


@dataclass(frozen=True)
class Failure:
    """A missing result as a value: it is counted and journaled, and never becomes a reward of 0."""

    reason: str  # one line, e.g. "reward timed out after 5.0 s"
    where: str = ""  # the worker or call that failed


def one_line(error: object, limit: int | None = 200) -> str:
    """Return the text of an error on one line, or the name of its type if it has no text.

    It is cut at `limit` characters; None: not at all.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:limit]
