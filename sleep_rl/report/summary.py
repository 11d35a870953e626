"""`sleep-rl summary`: several runs, usually seeds of one config, as one text table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sleep_rl.contracts.errors import InputError
from sleep_rl.journal.journal import read
from sleep_rl.journal.retention import METHODS, Retention
from sleep_rl.journal.text import aligned

ALL, SHARE, JOINT = "all days", "of joint", "joint"


def summarize(run_dirs: Iterable[str | Path]) -> str:
    """Mean and range (min..max) over runs, for each method and column of the last evaluation; with
    the accuracy over the questions of all days together, and its share of the joint upper bound of
    the same run.
    """
    runs = [Retention.of(read(Path(run_dir) / "metrics.jsonl")) for run_dir in run_dirs]
    evaluated = [run for run in runs if run.methods]
    if not evaluated:
        raise InputError(
            "nothing to summarize: expected an evaluation after a night, got none "
            f"in {len(runs)} runs"
        )
    columns = [*dict.fromkeys(c for run in evaluated for c in run.columns), ALL, SHARE]
    rows = [["method", "after", *columns]]
    for method in dict.fromkeys(m for run in evaluated for m in run.methods):
        mine = [run for run in evaluated if method in run.methods]
        values = [_values(run, method) for run in mine]
        after = " | ".join(dict.fromkeys(run.last(method)["after"] for run in mine))
        rows.append(
            [
                METHODS.get(method, method),
                after,
                *(_cell([v.get(c) for v in values], len(runs)) for c in columns),
            ]
        )
    return (
        f"mean (min..max) over {len(runs)} runs; [k] where only k of them have a value\n"
        + aligned(rows)
    )


def _values(run: Retention, method: str) -> dict[str, float | None]:
    """Column -> accuracy after the last night."""
    out = {**run.last(method)["row"], ALL: run.all_days(method)}
    bound = run.all_days(JOINT) if JOINT in run.methods else None
    if bound and out[ALL] is not None:
        out[SHARE] = out[ALL] / bound
    return out


def _cell(found: list[float | None], runs: int) -> str:
    values = [value for value in found if value is not None]
    some = f" [{len(values)}]" if len(values) < runs else ""
    return (
        f"{sum(values) / len(values):.2f} ({min(values):.2f}..{max(values):.2f}){some}"
        if values
        else "-"
    )
