"""Exceptions of bad input and of failed runs, and failures that are values."""

from __future__ import annotations

from dataclasses import dataclass


class InputError(ValueError):
    """The user's input cannot work. One line: what, allowed, got, where. The command line exits
    with 2.
    """


class RunError(RuntimeError):
    """The run cannot go on (NaN loss, full disk, dead workers). One line. The command line exits
    with 1.
    """


@dataclass(frozen=True)
class Failure:
    """A result that could not be produced. It is counted and named, and never becomes a reward of
    zero.
    """

    reason: str  # one line, e.g. "reward timed out after 5.0 s"
    where: str = ""  # the worker or call that failed


def one_line(error: object, limit: int | None = 200) -> str:
    """Return the text of an error on one line, cut at `limit` characters (None: not at all); the
    name of its type where it has no text.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:limit]
