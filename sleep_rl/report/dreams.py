"""Dreams as people read them: `sleep-rl dreams RUN` as text, and the report's section on them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from sleep_rl.contracts.errors import InputError
from sleep_rl.journal.journal import Record, read
from sleep_rl.journal.retention import METHODS
from sleep_rl.journal.text import aligned

SORTS = ("gain", "held_out", "importance", "tau_before", "logprob")
STATES = ("rewarded", "unrewarded", "rejected", "failed")


def state(dream: Record) -> str:
    """What became of a dream: rewarded or unrewarded (both were tried out), rejected by selection,
    or failed.
    """
    if dream["reason"]:
        return "failed"
    if not dream["kept"]:
        return "rejected"
    return "rewarded" if dream["reward"] else "unrewarded"


def dreams_of(run_dir: str | Path) -> list[Record]:
    """A run's dreams, in the order in which they were written. Raises InputError when it has
    none.
    """
    found = [r for r in read(Path(run_dir) / "metrics.jsonl") if r["kind"] == "dream"]
    if not found:
        raise InputError(
            f"{run_dir}: no dreams; dream.rounds above 0 makes some, after the first night"
        )
    return found


def listing(
    run_dir: str | Path,
    *,
    task: str = "",
    night: int | None = None,
    only: str = "",
    sort: str = "gain",
    most: int = 20,
) -> str:
    """The chosen dreams of a run, best first, one line of figures and one of text each. Raises
    InputError.
    """
    if only and only not in STATES:
        raise InputError(f"--only: one of {', '.join(STATES)}, got {only}")
    if sort not in SORTS:
        raise InputError(f"--sort: one of {', '.join(SORTS)}, got {sort}")
    chosen = [
        d
        for d in dreams_of(run_dir)
        if task in d["task"] and night in (None, d["night"]) and only in ("", state(d))
    ]
    ordered = sorted(chosen, key=lambda d: -d[sort] if d.get(sort) is not None else float("inf"))[
        :most
    ]
    rows = [
        [
            "night",
            "task",
            "dream",
            "omega",
            "tau",
            "with it",
            "gain",
            "held out",
            "what became of it",
        ]
    ]
    for d in ordered:
        rows.append(
            [
                f"{d['night']}.{d['round']}",
                d["task"],
                str(d["number"]),
                _number(d["importance"], "{:.3g}"),
                _number(d["tau_before"]),
                " ".join(f"{tau:.2f}" for tau in d["taus"]),
                _number(d["gain"]),
                _number(d["held_out"]),
                d["reason"] or state(d),
            ]
        )
    lines = aligned(rows).split("\n")
    told = [
        lines[0],
        *(
            f"{line}\n    {' '.join(d['text'].split())}"
            for line, d in zip(lines[1:], ordered, strict=True)
        ),
    ]
    return "\n".join(
        [*told, f"{len(ordered)} of {len(chosen)} chosen, {len(dreams_of(run_dir))} in all"]
    )


def _number(value: float | None, how: str = "{:.2f}") -> str:
    return "-" if value is None else how.format(value)


# ---- the report


def section(records: Sequence[Record], most: int = 6) -> str:
    """The report's part on dreams: every round in figures, then the best, the worst and some that
    were rejected.
    """
    rounds = [r for r in records if r["kind"] == "dreamed"]
    dreams = [r for r in records if r["kind"] == "dream"]
    if not rounds:
        return ""
    tried = sorted((d for d in dreams if d["gain"] is not None), key=lambda d: -d["gain"])
    rejected = [d for d in dreams if state(d) == "rejected"]
    parts = [
        _rounds(rounds),
        _forms(records),
        _list("Best", tried[:most]),
        _list("Worst", tried[most:][-most:][::-1]),
        _list(
            "Rejected by selection", sorted(rejected, key=lambda d: d["importance"] or 0.0)[:most]
        ),
    ]
    return (
        '<h2>Dreams</h2><p class="lead">What the model wrote about its tasks, tried out on '
        "isolated copies of itself. "
        "Gain: tau of the copies less that of the model. Held out: the gain on a training "
        "seed that the reward never "
        f"saw; it is what a gain is worth.</p>{''.join(parts)}"
    )


def _rounds(rounds: list[Record]) -> str:
    head = "night,round,written,kept,rewarded,failed,tau before,gain,gain of the rewarded,held out"
    fields = ("tau_before", "gain", "gain_rewarded", "gain_held_out")
    rows = [
        [
            r["night"],
            r["round"],
            r["written"],
            r["kept"],
            r["rewarded"],
            r["failed"],
            *(_number(r[f]) for f in fields),
        ]
        for r in rounds
    ]
    return _table(head, rows)


def _forms(records: Sequence[Record]) -> str:
    """Accuracy on the newest day's deeper questions after each night."""
    found = {
        (r["after"], r["method"]): r["forms"]
        for r in records
        if r["kind"] == "evaluate" and r.get("forms")
    }
    names = list(dict.fromkeys(name for forms in found.values() for name in forms))
    rows = [
        [after, METHODS.get(method, method), *(_number(forms.get(name)) for name in names)]
        for (after, method), forms in found.items()
    ]
    head = ",".join(["after", "method", *names])
    return (
        f"<h3>The newest day, asked otherwise than its documents say it</h3>{_table(head, rows)}"
        if rows
        else ""
    )


def _list(title: str, dreams: list[Record]) -> str:
    if not dreams:
        return ""
    rows = [
        [
            f"{d['night']}.{d['round']}",
            d["task"],
            " ".join(d["text"].split())[:300],
            _number(d["importance"], "{:.3g}"),
            _number(d["gain"]),
            _number(d["held_out"]),
        ]
        for d in dreams
    ]
    return f"<h3>{title}</h3>{_table('night,task,dream,omega,gain,held out', rows)}"


def _table(head: str, rows: list[list]) -> str:
    names = "".join(f"<th>{name}</th>" for name in head.split(","))
    short = [
        ' class="n"' if all(len(str(row[i])) < 12 for row in rows) else ""
        for i in range(head.count(",") + 1)
    ]
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{how}>{escape(str(cell))}</td>" for how, cell in zip(short, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<table class="plain"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>'
