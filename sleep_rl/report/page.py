"""The report of a run: one HTML file from `metrics.jsonl`, without scripts or external links."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup

from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.files import write_atomically
from sleep_rl.journal.journal import read_entries
from sleep_rl.journal.retention import Retention
from sleep_rl.journal.schema import Done, Entry, RunStart, Torn
from sleep_rl.journal.series import Charts
from sleep_rl.journal.text import clock
from sleep_rl.report import sections
from sleep_rl.report.dreams import section
from sleep_rl.report.templates import render, static


def write_report(run_dir: str | Path) -> Path:
    """Write `run_dir/report.html` from `run_dir/metrics.jsonl`, also for an unfinished run.

    Raises InputError for a journal that cannot be read, RunError if the report cannot be written.
    """
    html = page(Path(run_dir) / "metrics.jsonl")
    target = Path(run_dir) / "report.html"
    try:
        write_atomically(target, html.encode(errors="replace"))
    except OSError as error:
        raise RunError(f"cannot write the report {target}: {error.strerror or error}") from error
    return target


def page(source: Path) -> str:
    """Return the report of the journal `source` as HTML. Raises InputError if it cannot be read or
    has no record.
    """
    lines = read_entries(source)
    torn = [line.line for line in lines if isinstance(line, Torn)]
    entries = [line for line in lines if not isinstance(line, Torn)]
    if not entries:
        raise InputError(
            f"no metrics to report: expected at least one record, got an empty file: {source}"
        )
    newest = {entry.kind: entry for entry in entries}
    run = newest.get("run", RunStart(t=entries[0].t))
    retention = Retention.of(entries)
    html = render(
        "report.html",
        style=static("report.css"),
        task="run" if run.task is None else run.task,
        facts=_facts(run),
        status=_status(newest.get("done"), entries[-1]),
        torn=torn,
        headline=sections.headline(retention),
        heatmaps=sections.heatmaps(retention),
        measures=sections.other_measures(retention, entries),
        curves=_curves(entries),
        dreams=section(entries),
        answers=sections.answers(entries),
        failures=sections.failures(sections.count_failures(entries)),
        config=json.dumps(run.config or {}, indent=2, ensure_ascii=False),
    )
    return str(html)


def _facts(run: RunStart) -> dict[str, str]:
    started = run.t if run.started is None else run.started
    if isinstance(started, (int, float)):
        # a number that is not a date is shown unchanged
        with suppress(ValueError, OverflowError, OSError):
            started = datetime.fromtimestamp(started, UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts = {
        "task": run.task,
        "model": run.model,
        "started": started,
        "seeds": ", ".join(map(str, run.seeds or ())),
        "commit": (run.commit or "")[:12],
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def _status(done: Done | None, last: Entry) -> tuple[str, str]:
    """Return (CSS class, text) of the line on how the run ended."""
    if done is None:
        where = [f"“{last.kind}”"]
        where += [
            f"{name} {getattr(last, name)}"
            for name in ("night", "step")
            if getattr(last, name, None) is not None
        ]
        return "bad", (
            "Unfinished: the journal has no end of the run; its last entry is "
            + ", ".join(where)
            + "."
        )
    duration = clock(done.seconds or 0)
    if done.status == "ok":
        return "good", f"Finished in {duration}."
    return "bad", f"Failed after {duration}: {done.reason}"


def _curves(entries: list[Entry]) -> Markup:
    charts = Charts()
    for entry in entries:
        charts.add(entry)
    panels = charts.charts()
    missing = [chart.panel.title.lower() for chart in panels if not chart.series]
    if len(missing) == len(panels):
        return Markup()
    return render("curves.html", figures=sections.figures(panels), missing=", ".join(missing))
