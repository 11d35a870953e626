"""`sleep-rl summary`: several runs, usually seeds of one config, as one text table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sleep_rl.contracts.errors import InputError
from sleep_rl.journal.journal import read_entries
from sleep_rl.journal.measures import ANSWERABLE, DIGITS, HEADS, scores
from sleep_rl.journal.retention import ALL_DAYS, Retention, SourceKind, label_of_method
from sleep_rl.journal.text import NO_VALUE, aligned

SHARE = "of joint"
JOINT = "joint"
DRIFT = "drift"
MEASURES = (*ANSWERABLE, *HEADS, DRIFT)
"""Further columns, each shown if a run has a value."""


def summarize(run_dirs: Iterable[str | Path]) -> str:
    """Return a table of mean and range (min..max) over runs, for each method and column of the last
    evaluation.

    Two more columns: the accuracy over the pooled questions of all days, and its ratio to the joint
    upper bound of the same run; in natural language also those of the second table, without costs,
    and the drift. Raises InputError if no run was evaluated after a night.
    """
    runs = [Retention.of(read_entries(Path(run_dir) / "metrics.jsonl")) for run_dir in run_dirs]
    evaluated = [run for run in runs if run.methods]
    if not evaluated:
        raise InputError(
            "nothing to summarize: expected an evaluation after a night, got none "
            f"in {len(runs)} runs"
        )
    days = dict.fromkeys(column for run in evaluated for column in run.columns)
    measured = {
        name for run in evaluated for method in run.methods for name in _newest(run, method)
    }
    columns = [*days, ALL_DAYS, SHARE, *(name for name in MEASURES if name in measured)]
    lines = [["method", "after", *(HEADS.get(name, name) for name in columns)]]
    for method in dict.fromkeys(m for run in evaluated for m in run.methods):
        with_method = [run for run in evaluated if method in run.methods]
        values = [_newest(run, method) for run in with_method]
        after = " | ".join(dict.fromkeys(run.last(method).after for run in with_method))
        cells = [_mean_and_range(c, [v.get(c) for v in values], len(runs)) for c in columns]
        lines.append([label_of_method(method), after, *cells])
    return f"mean (min..max) over {len(runs)} runs; [k]: only k of them have a value\n" + aligned(
        lines
    )


def _newest(run: Retention, method: str) -> dict[str, float | None]:
    """Return column -> value after the last night."""
    rows = {row.source.name: row for row in run.rows() if row.source.kind is SourceKind.METHOD}
    row = rows[method]
    accuracies = {cell.column: cell.value for cell in row.cells}
    accuracies[ALL_DAYS] = run.all_days(method)
    bound = run.all_days(JOINT) if JOINT in run.methods else None
    if bound and accuracies[ALL_DAYS] is not None:
        accuracies[SHARE] = accuracies[ALL_DAYS] / bound
    values = accuracies | scores(run, run.last(method))
    return values if row.drift is None else values | {DRIFT: row.drift}


def _mean_and_range(column: str, measured: list[float | None], runs: int) -> str:
    values = [value for value in measured if value is not None]
    if not values:
        return NO_VALUE
    some = f" [{len(values)}]" if len(values) < runs else ""
    mean = sum(values) / len(values)
    shown = [format(value, DIGITS.get(column, ".2f")) for value in (mean, min(values), max(values))]
    return "{} ({}..{})".format(*shown) + some
