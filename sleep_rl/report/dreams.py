"""The dreams of a run: `sleep-rl dreams RUN` as text, and the report's section on dreams."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from sleep_rl.contracts.errors import InputError
from sleep_rl.journal.journal import read_entries
from sleep_rl.journal.retention import label_of_method
from sleep_rl.journal.schema import DreamResult, DreamSummary, Entry, Evaluation
from sleep_rl.journal.text import aligned, decimal
from sleep_rl.report.templates import render

SORTS = ("gain", "held_out", "importance", "tau_before", "logprob")
STATES = ("rewarded", "unrewarded", "rejected", "failed")
HEAD = (
    "night",
    "task",
    "dream",
    "omega",
    "tau before",
    "taus",
    "gain",
    "held out",
    "outcome",
)
SHORT = 12
"""A column of the report's tables whose cells have fewer characters is not wrapped."""

Table = tuple[str, list[str], list[list[object]]]
"""Title, column names, rows."""


def state(dream: DreamResult) -> str:
    """Return the outcome of a dream, one of STATES: rewarded or unrewarded (after trials), rejected
    by selection, or failed.
    """
    if dream.reason:
        return "failed"
    if not dream.kept:
        return "rejected"
    return "rewarded" if dream.reward else "unrewarded"


def dreams_of(run_dir: str | Path) -> list[DreamResult]:
    """Return a run's dreams, in order of generation. Raises InputError if it has none."""
    entries = read_entries(Path(run_dir) / "metrics.jsonl")
    dreams = [entry for entry in entries if isinstance(entry, DreamResult)]
    if not dreams:
        raise InputError(
            f"{run_dir}: no dreams; a run with dream.rounds above 0 has some, after its first night"
        )
    return dreams


def listing(
    run_dir: str | Path,
    *,
    task: str = "",
    night: int | None = None,
    only: str = "",
    sort: str = "gain",
    most: int = 20,
) -> str:
    """Return a text table of a run's dreams, best first: a line of figures and a line of text each.

    `task`: part of the task's name; `night`: None for all; `only`: one of STATES, empty for all;
    `sort`: one of SORTS; `most`: largest number of dreams. Raises InputError for another choice,
    and for a run without dreams.
    """
    if only and only not in STATES:
        raise InputError(f"--only: one of {', '.join(STATES)}, got {only}")
    if sort not in SORTS:
        raise InputError(f"--sort: one of {', '.join(SORTS)}, got {sort}")
    dreams = dreams_of(run_dir)
    chosen = [
        dream
        for dream in dreams
        if task in dream.task and night in (None, dream.night) and only in ("", state(dream))
    ]
    shown = sorted(chosen, key=lambda dream: _descending(getattr(dream, sort)))[:most]
    head, *figures = aligned([list(HEAD), *map(_figures, shown)]).split("\n")
    lines = [head]
    for line, dream in zip(figures, shown, strict=True):
        lines += [line, f"    {_one_line(dream)}"]
    return "\n".join([*lines, f"{len(shown)} of {len(chosen)} selected, {len(dreams)} in total"])


def _descending(value: float | None) -> float:
    return float("inf") if value is None else -value


def _figures(dream: DreamResult) -> list[str]:
    return [
        f"{dream.night}.{dream.round}",
        dream.task,
        str(dream.number),
        decimal(dream.importance, ".3g"),
        decimal(dream.tau_before),
        " ".join(f"{tau:.2f}" for tau in dream.taus),
        decimal(dream.gain),
        decimal(dream.held_out),
        dream.reason or state(dream),
    ]


def _one_line(dream: DreamResult) -> str:
    return " ".join(dream.text.split())


# ---- the report


def section(entries: Sequence[Entry], most: int = 6) -> Markup:
    """Return the report's section on dreams: a table of rounds, then the best, the worst and some
    rejected dreams, `most` of each. Empty without a finished round.
    """
    rounds = [entry for entry in entries if isinstance(entry, DreamSummary)]
    if not rounds:
        return Markup()
    dreams = [entry for entry in entries if isinstance(entry, DreamResult)]
    tried = sorted((d for d in dreams if d.gain is not None), key=lambda d: -d.gain)
    rejected = [d for d in dreams if state(d) == "rejected"]
    rejected.sort(key=lambda d: d.importance or 0.0)
    tables = [
        _rounds(rounds),
        _deeper(entries),
        _dreams("Best", tried[:most]),
        _dreams("Worst", tried[most:][-most:][::-1]),
        _dreams("Rejected by selection", rejected[:most]),
    ]
    drawn = [(title, head, _cells(rows)) for title, head, rows in tables if rows]
    return render("dreams.html", tables=drawn)


def _cells(rows: list[list[object]]) -> list[list[tuple[object, bool]]]:
    """Return rows of (cell, whether all cells of its column are short)."""
    columns = zip(*rows, strict=True)
    short = [all(len(str(cell)) < SHORT for cell in column) for column in columns]
    return [list(zip(row, short, strict=True)) for row in rows]


def _rounds(rounds: list[DreamSummary]) -> Table:
    head = ["night", "round", "dreams", "kept", "rewarded", "failed"]
    head += ["tau before", "gain", "gain of rewarded", "held out"]
    rows: list[list[object]] = [
        [
            r.night,
            r.round,
            r.written,
            r.kept,
            r.rewarded,
            r.failed,
            decimal(r.tau_before),
            decimal(r.gain),
            decimal(r.gain_rewarded),
            decimal(r.gain_held_out),
        ]
        for r in rounds
    ]
    return "", head, rows


def _deeper(entries: Sequence[Entry]) -> Table:
    """Return the accuracies on the newest day's deeper questions after each night."""
    evaluations = {
        (entry.after, entry.method): entry.deeper
        for entry in entries
        if isinstance(entry, Evaluation) and entry.deeper
    }
    names = list(dict.fromkeys(name for shares in evaluations.values() for name in shares))
    rows: list[list[object]] = [
        [after, label_of_method(method), *(decimal(shares.get(name)) for name in names)]
        for (after, method), shares in evaluations.items()
    ]
    title = "Deeper questions about the newest day"
    return title, ["after", "method", *names], rows


def _dreams(title: str, dreams: list[DreamResult]) -> Table:
    rows: list[list[object]] = [
        [
            f"{dream.night}.{dream.round}",
            dream.task,
            _one_line(dream)[:300],
            decimal(dream.importance, ".3g"),
            decimal(dream.gain),
            decimal(dream.held_out),
        ]
        for dream in dreams
    ]
    return title, ["night", "task", "dream", "omega", "gain", "held out"], rows
