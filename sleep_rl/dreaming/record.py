"""Write a round of dreams to the journal, and as a jsonl dataset."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from sleep_rl.contracts.errors import RunError
from sleep_rl.contracts.records import DreamTask
from sleep_rl.dreaming.dream import Dream
from sleep_rl.session.context import RunContext


def record_round(
    run: RunContext, night: int, number: int, tasks: dict[str, DreamTask], dreams: list[Dream]
) -> None:
    """Journal every dream and the round's summary, and write <run>/dreams/night-<n>-<round>.jsonl.

    Raises RunError if the file cannot be written.
    """
    place = {"night": night, "round": number}
    rows = [
        {**place, **asdict(d), "gain": d.gain, "context": tasks[d.task].context.text}
        for d in dreams
    ]
    for row in rows:
        fields = {key: value for key, value in row.items() if key not in ("ids", "context")}
        run.journal.log("dream", **fields)
    reasons = [dream.reason for dream in dreams if dream.reason]
    for reason in sorted(set(reasons)):
        run.journal.log("failure", where="dream", reason=reason, count=reasons.count(reason))
    scored = [dream for dream in dreams if dream.reward is not None]
    rewarded = [dream for dream in scored if dream.reward]
    held_out = [dream.held_out for dream in rewarded if dream.held_out is not None]
    run.journal.log(
        "dreamed",
        **place,
        written=len(dreams),
        kept=sum(dream.kept for dream in dreams),
        rewarded=len(rewarded),
        failed=len(reasons),
        tau_before=_mean([dream.tau_before for dream in scored]),
        gain=_mean([dream.gain for dream in scored]),
        gain_rewarded=_mean([dream.gain for dream in rewarded]),
        gain_held_out=_mean(held_out),
    )
    _write(Path(run.folder) / "dreams", f"night-{night}-{number}.jsonl", rows)


def _write(folder: Path, name: str, rows: list[dict]) -> None:
    lines = [json.dumps({key: _finite(value) for key, value in row.items()}) for row in rows]
    try:
        os.makedirs(folder, exist_ok=True)
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror or error})") from error


def _finite(value: object) -> object:
    """Return None for NaN and infinity, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mean(values: list[float]) -> float | None:
    """Return the mean; None for an empty list."""
    return fmean(values) if values else None
