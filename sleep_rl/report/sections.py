"""Sections of the report and the live page, as HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from markupsafe import Markup

from sleep_rl.journal import measures
from sleep_rl.journal.retention import (
    BASE,
    Retention,
    RetentionRow,
    SourceKind,
    label_of_method,
)
from sleep_rl.journal.schema import Completion, Entry, Failed, SinkFailed, Written
from sleep_rl.journal.series import Chart
from sleep_rl.report.colours import MUTED, colours_of, ink_on, shade
from sleep_rl.report.figures import figure, label_of
from sleep_rl.report.templates import render

OPEN_BOOK = "#5d6675"

Failures = Counter[tuple[str, str]]
"""(where, reason) -> count."""


def headline(retention: Retention) -> Markup:
    """Return the newest accuracies in figures: the methods first, for which the page is read."""
    rows = sorted(retention.rows(), key=lambda row: row.source.kind is not SourceKind.METHOD)
    return render(
        "headline.html",
        rows=[(row, _colour(retention, row)) for row in rows] if retention.methods else [],
        columns=retention.columns,
        questions=retention.questions(),
        base=BASE,
        drifts=any(row.drift is not None for row in rows),
        probes=retention.probes,
    )


def other_measures(retention: Retention, entries: Iterable[Entry]) -> Markup:
    """Return the table by kind, likelihood and cost, the lines on what was unlearned, and the line
    on overlaps; empty without any.
    """
    head, rows = measures.table(retention)
    counts = [e.overlap for e in entries if isinstance(e, Written) and e.overlap is not None]
    unlearned = retention.unlearned.lines()
    if not rows and not counts and not unlearned:
        return Markup()
    return render(
        "measures.html",
        head=head,
        rows=rows,
        meaning=measures.MEANING,
        unlearned=unlearned,
        overlap=sum(counts) if counts else None,
    )


def _colour(retention: Retention, row: RetentionRow) -> str:
    if row.after == BASE:
        return MUTED
    if row.source.kind is SourceKind.CONTEXT:
        return OPEN_BOOK
    return colours_of(retention.methods)[row.source.name]


def heatmaps(retention: Retention) -> Markup:
    """Return the retention matrix of every method with several nights; empty before the first
    night.
    """
    methods = [
        m for m in retention.methods if m in ("sleep", "sft") or len(retention.evaluations[m]) > 1
    ]
    if not methods:
        return Markup()
    colours = colours_of(retention.methods)
    matrices = [(label_of_method(m), colours[m], retention.history(m)) for m in methods]
    return render(
        "heatmaps.html", matrices=matrices, columns=retention.columns, shade=shade, ink_on=ink_on
    )


def figures(
    charts: Iterable[Chart],
    draw: Callable[[Chart], Markup] | None = None,
    newest: bool = False,
) -> Markup:
    """Return the figures of all charts with points.

    `draw`: draws a chart, None for `figure`; `newest`: with the newest value of each curve.
    """
    draw = draw or figure
    drawn = [
        (chart.panel, draw(chart), _newest(chart) if newest else [])
        for chart in charts
        if chart.series
    ]
    return render("figures.html", figures=drawn)


def _newest(chart: Chart) -> list[tuple[str, str]]:
    values = []
    for series in chart.series:
        y = next(y for _, y in reversed(series.points) if y is not None)
        values.append((label_of(series), f"{y:.3g}"))
    return values


def answers(entries: Iterable[Entry], most: int = 8) -> Markup:
    """Return a table of answers to the same questions before and after the night, at most `most`
    per day; empty without any.
    """
    pairs: dict[tuple[str, str], dict[str, Completion]] = {}
    for entry in entries:
        if isinstance(entry, Completion):
            pair = pairs.setdefault((entry.day, entry.question), {})
            # the first answer before, the newest one after
            if entry.when != "before" or "before" not in pair:
                pair[entry.when] = entry
    if not pairs:
        return Markup()
    days: dict[str, list[dict[str, Completion]]] = {}
    for (day, _), pair in pairs.items():
        days.setdefault(day, []).append(pair)
    rows = [
        (next(iter(pair.values())), pair.get("before"), pair.get("after"))
        for of_day in days.values()
        for pair in of_day[:most]
    ]
    is_limited = max(map(len, days.values())) > most
    return render("answers.html", rows=rows, most=most if is_limited else 0)


def failures_of(entry: Entry) -> Iterator[tuple[str, str, float]]:
    """Yield (where, reason, count) of the failures in an entry."""
    if isinstance(entry, Failed):
        yield str(entry.where), str(entry.reason), entry.count or 1
    elif isinstance(entry, SinkFailed):
        yield entry.sink, entry.reason, 1
    for name in entry.nonfinite:
        yield f"{entry.kind}.{name}", "value was not finite (NaN or infinite)", 1


def failures(counts: Failures) -> Markup:
    """Return a table of failures; empty without any."""
    rows = [(where, reason, count) for (where, reason), count in counts.items()]
    return render("failures.html", rows=rows) if rows else Markup()


def count_failures(entries: Iterable[Entry]) -> Failures:
    """Return the failures of a run."""
    counts: Failures = Counter()
    for entry in entries:
        for where, reason, count in failures_of(entry):
            counts[where, reason] += count
    return counts
