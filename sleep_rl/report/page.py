"""The report of a run: `metrics.jsonl` in, one HTML file out that opens offline, without scripts or
links.

matplotlib is imported where curves are drawn, because its import is slow and most processes never
draw.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.files import write_atomically
from sleep_rl.journal.journal import Record, read
from sleep_rl.journal.retention import KNOWN, METHODS, Retention, wilson_interval
from sleep_rl.journal.schema import METRICS
from sleep_rl.journal.series import course, on_one_axis
from sleep_rl.journal.text import clock
from sleep_rl.report.dreams import section

COLOURS = {"sleep": "#2f5d9b", "sft": "#c4661f", "joint": "#3d8b6b"}
"""One colour per method, everywhere; what is no method is drawn in BLUE, PURPLE and CYAN."""
BLUE, PURPLE, CYAN, INK, MUTED, FAINT = (
    COLOURS["sleep"],
    "#8e5aa8",
    "#45a1b5",
    "#1d2330",
    "#7b8494",
    "#a2a9b6",
)
PLOT = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "font.sans-serif": ["Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#eef0f3",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}
Series = tuple[str, str, list[tuple[float, float]]]  # label, colour, points; NaN makes a gap


@dataclass(frozen=True)
class Panel:
    """One set of curves. `nights` are x positions where a night begins; `dots` for events instead
    of a course.
    """

    title: str
    meaning: str
    x: str
    y: str
    series: list[Series]
    nights: tuple[tuple[float, str], ...] = ()
    dots: bool = False


def write_report(run_dir: str | Path) -> Path:
    """Writes `run_dir/report.html` from `run_dir/metrics.jsonl` alone; also for a run that did not
    end.
    """
    html, target = page(Path(run_dir) / "metrics.jsonl"), Path(run_dir) / "report.html"
    try:
        write_atomically(target, html.encode(errors="replace"))
    except OSError as error:
        raise RunError(f"cannot write the report {target}: {error.strerror or error}") from error
    return target


def page(source: Path) -> str:
    """The report of the journal `source` as HTML. Raises InputError when it cannot be read or holds
    no record.
    """
    records = read(source)
    if all(record["kind"] == "torn" for record in records):
        raise InputError(
            f"no metrics to report: expected at least one record, got an empty file: {source}"
        )
    retention = Retention.of(records)
    newest = {record["kind"]: record for record in records}
    run = newest.get("run", {})
    config = escape(json.dumps(run.get("config", {}), indent=2, ensure_ascii=False))
    body = (
        _header(records, run, newest.get("done", {}))
        + headline(retention)
        + heatmaps(retention)
        + _curves(records)
        + section(records)
        + completions(records)
        + failures(records)
        + "<h2>Configuration</h2><details><summary>every key of this "
        f"run</summary><pre>{config}</pre></details>"
    )
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width">'
        "<title>sleep_rl: "
        f"{escape(str(run.get('task', 'run')))}</title><style>{STYLE}</style>\n<main>{body}</main></html>\n"
    )


def _header(records: list[Record], run: Record, done: Record) -> str:
    started = run.get("started") or records[0].get("t")
    if isinstance(started, (int, float)):
        # no date of any calendar: shown as it is
        with suppress(ValueError, OverflowError, OSError):
            started = datetime.fromtimestamp(started, UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts = run | {
        "started": started,
        "commit": str(run.get("commit") or "")[:12],
        "seeds": str(run.get("seeds", "")).strip("[]"),
    }
    spans = "".join(
        f"<span><i>{name}</i> {escape(str(facts[name]))}</span>"
        for name in ("task", "model", "started", "seeds", "commit")
        if facts.get(name) not in (None, "")
    )
    took = clock(done.get("seconds") or 0)
    if done.get("status") == "ok":
        status = f'<p class="good">Finished in {took}.</p>'
    elif done:
        status = f'<p class="bad">Failed after {took}: {escape(str(done.get("reason")))}</p>'
    else:
        last = next(r for r in reversed(records) if r["kind"] != "torn")
        where = ", ".join(
            [f"“{last['kind']}”", *(f"{k} {last[k]}" for k in ("night", "step") if k in last)]
        )
        status = f'<p class="bad">Unfinished: no end of the run is recorded; the last entry is {escape(where)}.</p>'
    torn = [str(r["line"]) for r in records if r["kind"] == "torn"]
    if torn:
        status += f'<p class="bad">Left out: metrics.jsonl line {", ".join(torn)}, cut off while being written, or damaged.</p>'
    return (
        f'<header><h1>Language models need sleep</h1><p class="facts">{spans}</p>{status}</header>'
    )


def headline(retention: Retention) -> str:
    """The newest evaluation of every method in figures, as HTML."""
    if not retention.methods:
        return "<h2>Result</h2><p>No evaluation after a night yet.</p>"
    last = {method: retention.last(method) for method in retention.methods}
    counts = {c: n for r in last.values() for c, n in (r.get("n") or {}).items()}
    head = "".join(
        f"<th>{escape(c)}<small>{f'{counts[c]:,} questions' if c in counts else ''}</small></th>"
        for c in retention.columns
    )
    body = "".join(
        _headline_row(retention, METHODS.get(m, m), COLOURS.get(m, PURPLE), r)
        for m, r in last.items()
    )
    if retention.base:
        body += _headline_row(retention, "base model", MUTED, retention.base)
    if retention.open_book:
        record = {"after": "", "row": retention.open_book, "n": counts}
        body += _headline_row(retention, "open book", "#5d6675", record)
    return (
        '<h2>Result</h2><p class="lead">Share of correct answers, closed book, at the last '
        "evaluation of each method. "
        "Small: 95 % interval (Wilson). Grey: day not lived yet.</p><div "
        'class="wide"><table class="result"><thead><tr>'
        f"<th></th>{head}<th>lived "
        f"days<small>mean</small></th></tr></thead><tbody>{body}</tbody></table></div>"
    )


def _headline_row(retention: Retention, label: str, colour: str, record: Record) -> str:
    after, row, counts = record["after"], record["row"], record.get("n") or {}
    lived = [c for c in retention.columns if after == "base" or not retention.future(after, c)]
    cells = "".join(_bar(row.get(c), colour, counts.get(c), c in lived) for c in retention.columns)
    days = [row[c] for c in lived if c != KNOWN and row.get(c) is not None]
    mean = _bar(sum(days) / len(days) if days else None, colour, None)
    when = {"base": "before the first day", "": "document in context"}.get(after, f"after {after}")
    return f'<tr><th><b style="color:{colour}">{escape(label)}</b><small>{escape(when)}</small></th>{cells}{mean}</tr>'


def _bar(value: float | None, colour: str, count: int | None, lived: bool = True) -> str:
    if value is None:
        return '<td class="none">–</td>'
    interval = "{:.2f}–{:.2f}".format(*wilson_interval(value, count)) if count else ""
    fill = f"width:{100 * min(max(value, 0), 1):.0f}%;background:{colour if lived else '#c9ced6'}"
    return (
        f'<td{"" if lived else " class=none"}>{value:.2f}<span class="track"><span '
        f'style="{fill}"></span></span>'
        f"<small>{interval}</small></td>"
    )


def heatmaps(retention: Retention) -> str:
    """The retention matrix of every method that has one, as HTML; empty before the first night."""
    methods = [
        m for m in retention.methods if m in ("sleep", "sft") or len(retention.records[m]) > 1
    ]
    if not methods:
        return ""
    tables = "".join(_heatmap(retention, m) for m in methods)
    return (
        '<section class="keep"><h2>Retention</h2><p class="lead">Share of correct answers '
        "after each night. Down a "
        "column: how a day fares once it is past. Grey: day not lived yet.</p><div "
        f'class="pair">{tables}</div></section>'
    )


def _heatmap(retention: Retention, method: str) -> str:
    body = ""
    nights = [r for after, r in retention.records[method].items() if after != "base"]
    for record in filter(None, [retention.base, *nights]):
        cells = ""
        for column in retention.columns:
            value = record["row"].get(column)
            future = value is None or retention.future(record["after"], column)
            ink = "#fff" if value and value > 0.55 else INK
            look = 'class="future"' if future else f'style="background:{shade(value)};color:{ink}"'
            cells += f"<td {look}>{'' if value is None else f'{value:.2f}'}</td>"
        body += f"<tr><th>{escape(record['after'])}</th>{cells}</tr>"
    head = "".join(f"<th>{escape(c)}</th>" for c in retention.columns)
    title = f'<h3 style="color:{COLOURS.get(method, PURPLE)}">{escape(METHODS.get(method, method))}</h3>'
    return (
        f'<div>{title}<div class="wide"><table '
        f'class="heat"><thead><tr><th>after</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></div>"
    )


def completions(records: list[Record], most: int = 8) -> str:
    """Answers of the same questions before and after, `most` per day, as HTML; empty without
    any.
    """
    found: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        if record["kind"] == "completion":  # the first before, the newest after
            when = found.setdefault((record["day"], record["question"]), {})
            when[record["when"]] = (
                when.get("before", record) if record["when"] == "before" else record
            )
    if not found:
        return ""
    rows: list[str] = []
    shown: Counter[str] = Counter()
    for (day, question), when in found.items():
        shown[day] += 1
        if shown[day] <= most:
            asked = next(iter(when.values()))
            rows.append(
                f"<td>{escape(day)}</td><td>{_text(asked.get('prompt') or question)}</td>"
                f"<td>{_text(asked['answer'])}</td>{_answer(when.get('before'))}{_answer(when.get('after'))}"
            )
    some = f"The first {most} questions of each day." if max(shown.values()) > most else ""
    head = "day,question,right answer,before,after"
    return f'<h2>Answers before and after</h2><p class="lead">{some}</p>{_table(head, rows)}'


def _answer(record: Record | None) -> str:
    if record is None:
        return '<td class="none">–</td>'
    right = (record.get("score") or 0) >= 0.5
    return f'<td class="{"right" if right else "wrong"}">{"✓" if right else "✗"} {_text(record["completion"])}</td>'


def failures(records: list[Record]) -> str:
    """What failed and how often, as HTML; empty when nothing did."""
    counts: Counter[tuple[str, str]] = Counter()
    for record in records:
        if record["kind"] == "failure":
            counts[(str(record.get("where")), str(record.get("reason")))] += (
                record.get("count") or 1
            )
        elif record["kind"] == "sink_failed":
            counts[(record["sink"], record["reason"])] += 1
        for name in record.get("nonfinite", ()):
            counts[(f"{record['kind']}.{name}", "value was not finite (NaN or infinite)")] += 1
    rows = [
        f"<td>{_text(where)}</td><td>{_text(reason)}</td><td>{n:,}</td>"
        for (where, reason), n in counts.items()
    ]
    return f"<h2>Failures</h2>{_table('where,reason,count', rows)}" if rows else ""


def _curves(records: list[Record]) -> str:
    panels = _panels(records)
    drawn = [p for p in panels if any(points for *_, points in p.series)]
    if not drawn:
        return ""
    import matplotlib

    figures = ""
    for panel in drawn:
        # ids that differ between figures, not runs
        with matplotlib.rc_context(PLOT | {"svg.hashsalt": panel.title}):
            svg = _figure(panel)
        figures += f"<figure><h3>{escape(panel.title)}</h3>{svg}<figcaption>{escape(panel.meaning)}</figcaption></figure>"
    missing = ", ".join(p.title.lower() for p in panels if p not in drawn)
    note = f'<p class="lead">Not recorded in this run: {escape(missing)}.</p>' if missing else ""
    return f'<h2>Course</h2>{note}<div class="figures">{figures}</div>'


def _panels(records: list[Record]) -> list[Panel]:
    """Every set of curves that a run can have; those without values come without series."""
    start, minutes = records[0].get("t") or 0.0, "minutes since the start"
    seeds, samples, pushes, wakes, baselines = (
        [r | {"minutes": (r["t"] - start) / 60} for r in records if r["kind"] == kind]
        for kind in ("seed", "sample", "push", "wake", "baseline")
    )
    steps, nights = on_one_axis(seeds)
    trained = [
        r | {"trained": r["tokens_trained"] / r["seconds"]}
        for r in seeds
        if r.get("tokens_trained") and r.get("seconds")
    ]
    speed = [
        ("sampled", BLUE, course(samples, "minutes", "tokens_per_second")),
        ("trained", PURPLE, course(trained, "minutes", "trained")),
    ]
    cross = [("wake", MUTED, course(on_one_axis(wakes)[0], "x", "loss"))]
    for method in dict.fromkeys(r["method"] for r in baselines):
        placed, _ = on_one_axis([r for r in baselines if r["method"] == method])
        cross.append(
            (METHODS.get(method, method), COLOURS.get(method, PURPLE), course(placed, "x", "loss"))
        )

    def by_step(title: str, y: str, *lines: tuple[str, str, str]) -> Panel:
        series = [(label, colour, course(steps, "x", name)) for label, colour, name in lines]
        meaning = "; ".join(
            (f"{label}: " if len(lines) > 1 else "") + METRICS["seed"][name][0]
            for label, _, name in lines
        )
        return Panel(title, meaning, "seeding step, all nights", y, series, nights)

    def by_push(title: str, y: str, name: str, scale: float = 1) -> Panel:
        scaled = [r | {y: r[name] / scale} for r in pushes if r.get(name) is not None]
        states = zip(dict.fromkeys(r["name"] for r in scaled), (BLUE, PURPLE, CYAN))
        series = [
            (state, colour, course((r for r in scaled if r["name"] == state), "minutes", y))
            for state, colour in states
        ]
        return Panel(title, METRICS["push"][name][0], minutes, y, series, dots=True)

    return [
        by_step("Seeding loss", "L_KS", ("loss", BLUE, "loss")),
        by_step(
            "Divergence",
            "nats per token",
            ("new", BLUE, "divergence"),
            ("replay", PURPLE, "divergence_replay"),
        ),
        by_step(
            "Imitation reward",
            "reward, 0 to 1",
            ("mixed", BLUE, "reward_mean"),
            ("semantic", CYAN, "reward_sem"),
            ("edit distance", PURPLE, "reward_abs"),
        ),
        by_step("Log-probability gap", "nats per token", ("gap", BLUE, "logprob_gap")),
        Panel(
            "Baselines and wake",
            "cross entropy of the baselines and while awake",
            "step",
            "nats per token",
            cross,
        ),
        Panel(
            "Throughput",
            "sampled: all rollout workers; trained: all learners",
            minutes,
            "tokens per second",
            speed,
        ),
        by_push("Weight push: time", "seconds", "seconds"),
        by_push("Weight push: size", "MiB", "bytes", 2**20),
    ]


def _figure(panel: Panel) -> str:
    """The panel as an SVG element that may stand inside HTML."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 2.7), layout="constrained")
    axes = figure.add_subplot()
    series = [s for s in panel.series if s[2]]
    for label, colour, points in series:
        dots = (
            {"marker": "o", "linestyle": "", "markersize": 3.5}
            if panel.dots or len(points) < 3
            else {"linewidth": 1.3}
        )
        axes.plot(*zip(*points), color=colour, markeredgewidth=0, label=label, **dots)
    for x, label in panel.nights:
        axes.axvline(x, color="#dfe3e9", linewidth=0.8, zorder=0)
        axes.annotate(
            label,
            (x, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, -2),
            textcoords="offset points",
            va="top",
            fontsize=7.5,
            color=FAINT,
        )
    values = [y for *_, points in series for _, y in points if not math.isnan(y)]
    low = min(0, *values)
    # from zero, with room for the night labels
    axes.set_ylim(low, low + 1.18 * (max(0, *values) - low or 1))
    axes.set(xlabel=panel.x, ylabel=panel.y)
    if len(series) > 1:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.01, 1.0),
            ncols=4,
            handlelength=1.2,
            columnspacing=1.4,
        )
    figure.savefig(buffer := io.StringIO(), format="svg", transparent=True)
    # without the XML prolog and, below, without addresses
    svg = buffer.getvalue().partition("<svg")[2]
    svg = re.sub(r"<metadata>.*?</metadata>|\sxmlns(:\w+)?=\"[^\"]*\"", "", svg, flags=re.DOTALL)
    return f'<svg role="img" aria-label="{escape(panel.title)}"{svg}'


def _table(head: str, rows: list[str]) -> str:
    names = "".join(f"<th>{name}</th>" for name in head.split(","))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<table class="plain"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>'


def _text(value: object, most: int = 300) -> str:
    text = str(value).strip()
    return escape(text if len(text) <= most else text[:most] + " …")


def shade(value: float) -> str:
    """The colour of an accuracy in a heat map."""
    share = min(max(value, 0.0), 1.0)  # 0 to 1: white to deep blue-green
    return "#" + "".join(
        f"{round(a + (b - a) * share):02x}" for a, b in zip((244, 246, 243), (23, 92, 105))
    )


STYLE = """
:root{color-scheme:light}*{box-sizing:border-box}
body{margin:0;background:#fff;color:#1d2330;font:15px/1.5 -apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,
"Liberation Sans",sans-serif;font-variant-numeric:tabular-nums}main{max-width:1080px;margin:0 auto;padding:44px 28px 72px}
h1{font-size:27px;line-height:1.2;margin:0 0 8px;letter-spacing:-.01em}h3{font-size:14px;margin:0 0 6px}
h2{font-size:18px;margin:44px 0 4px;padding-top:14px;border-top:1px solid #e3e6eb}header p{margin:8px 0 0}
.facts span{margin-right:22px;white-space:nowrap}.facts i{font-style:normal;color:#7b8494;margin-right:3px}
.plain .n,.plain .n+th{white-space:nowrap;overflow-wrap:normal;min-width:4.5em}h3{margin-top:18px}
.good,.right{color:#2c7154}.bad,.wrong{color:#a8331f}.none{color:#a2a9b6}.wide{overflow-x:auto}
.lead{margin:0 0 14px;color:#5d6675;font-size:14px}small{display:block;font-weight:400;font-size:11.5px;line-height:1.4;
color:#7b8494}table{border-collapse:collapse;width:100%}th{font-weight:600;text-align:left}
thead th{border-bottom:1px solid #1d2330}tbody tr{border-bottom:1px solid #eef0f3}
.result th,.result td{padding:7px 10px 6px;vertical-align:top;white-space:nowrap}.result td{font-size:16px;min-width:86px}
.result tbody th{padding-left:0}.track,.track span{display:block;height:4px;border-radius:2px}
.track{margin:3px 0 2px;background:#eef0f3}.pair{display:flex;flex-wrap:wrap;gap:28px 40px}
.pair>div{flex:1 1 400px;min-width:0}.heat{border-collapse:separate;border-spacing:2px;font-size:13.5px}
.heat th{font-weight:400;color:#5d6675;font-size:12.5px;padding:2px 6px;white-space:nowrap;border:0}
.heat td{text-align:center;padding:8px 4px;border-radius:3px;min-width:48px}.heat thead th+th{text-align:center}
.heat .future{background:#f0f1f3;color:#a2a9b6}figure{margin:0}figure svg{display:block;width:100%;height:auto}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));gap:26px 36px;margin-top:14px}
figcaption{font-size:12px;color:#7b8494;margin-top:2px}.plain{font-size:13.5px}summary{cursor:pointer;color:#5d6675}
.plain th,.plain td{padding:5px 12px 5px 0;vertical-align:top;overflow-wrap:anywhere;white-space:pre-wrap}
pre{font:12.5px/1.5 ui-monospace,Menlo,Consolas,"Liberation Mono",monospace;
background:#f6f7f9;padding:14px 16px;border-radius:4px;white-space:pre-wrap;overflow-wrap:anywhere}
@media print{@page{margin:14mm}body{font-size:12px;-webkit-print-color-adjust:exact;print-color-adjust:exact}
main{max-width:none;padding:0}figure,tr,.keep{break-inside:avoid}h2,h3{break-after:avoid}
.figures{grid-template-columns:1fr 1fr}.pair>div{flex-basis:300px}.result td{min-width:0;font-size:13px}}
"""
