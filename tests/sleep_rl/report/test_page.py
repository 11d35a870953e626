"""The report: values and marks of all tables, no external resources, unfinished runs."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.journal.journal import Journal
from sleep_rl.report.page import write_report
from sleep_rl.report.summary import summarize

DAYS = ("day 1", "day 2")
COUNTS = {"known": 100, "day 1": 48, "day 2": 48}


def live(folder, known=0.88, done=True):
    """Write the journal of a small run of two nights."""
    journal = Journal(folder / "metrics.jsonl")
    journal.log(
        "run",
        config={"seeding": {"steps": 4}, "note": "a & b"},
        task="world",
        model="tiny",
        started=1.79e9,
        seeds=[7],
        commit="3f2a9c1",
    )
    rows = {
        "base": (0.99, 0.06, 0.02),
        "night 1": (0.95, 0.92, 0.08),
        "night 2": (known, 0.90, 0.96),
    }
    for after, row in rows.items():
        open_book = {"day 1": 0.94, "day 2": 0.98} if after == "base" else None
        journal.log(
            "evaluate",
            after=after,
            method="sleep",
            row=dict(zip(COUNTS, row, strict=False)),
            open_book=open_book,
            n=COUNTS,
        )
    for after, row in {"night 1": (0.80, 0.85, 0.04), "night 2": (0.17, 0.11, 0.93)}.items():
        journal.log(
            "evaluate",
            after=after,
            method="sft",
            row=dict(zip(COUNTS, row, strict=False)),
            n=COUNTS,
        )
    journal.log(
        "evaluate",
        after="night 2",
        method="joint",
        row={"known": 1.0, "day 1": 0.97, "day 2": 0.99},
        n=COUNTS,
    )
    for night in (1, 2):
        for step in range(1, 5):
            journal.log(
                "seed",
                day=DAYS[night - 1],
                night=night,
                step=step,
                steps=4,
                loss=1 / step,
                divergence=0.5 / step,
                divergence_replay=0.1,
                reward_mean=0.5,
                logprob_gap=1e-6,
                tokens_trained=900,
                seconds=0.5,
                grad_norm=float("nan") if step == 1 else 1.0,
            )
        journal.log("push", name="student", version=night, bytes=2**20, seconds=0.01)
    for when, text, score in (
        ("before", "<script>alert(1)</script>", 0.0),
        ("after", " lisbon", 1.0),
    ):
        journal.log(
            "completion",
            when=when,
            day="day 1",
            question="q0",
            prompt="Q : where ? A :",
            answer="lisbon",
            completion=text,
            score=score,
        )
    if done:
        journal.log("failure", where="reward <1>", reason="timed out", count=3)
        journal.log("done", seconds=512, status="ok", reason="")
    journal.close()
    return folder


class Page(HTMLParser):
    """A parser that collects cells of tables by class, links and scripts, and checks that tags are
    closed.
    """

    VOID = frozenset({"meta", "br", "path", "use", "rect"})

    def __init__(self, text):
        super().__init__()
        self.open = []
        self.tables = {}
        self.addresses = []
        self.tags = set()
        self.feed(text)
        assert self.open in ([], ["html"]), self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        self.addresses += [
            v for k, v in attrs.items() if k in ("src", "href", "xlink:href", "data", "action")
        ]
        if tag == "table":
            self.rows = self.tables.setdefault(attrs["class"], [])
            self.rows.append([])
        elif tag == "tr":
            self.rows[-1].append([])
        elif tag in ("td", "th"):
            self.rows[-1][-1].append((attrs.get("class") or "", []))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if (
            self.open
            and "table" in self.open
            and ("td" in self.open or "th" in self.open)
            and data.strip()
        ):
            self.rows[-1][-1][-1][1].append(data.strip())

    def cells(self, table, number=0):
        return [[text for _, text in row] for row in self.tables[table][number]]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    text = write_report(live(tmp_path_factory.mktemp("run"))).read_text()
    return text, Page(text)


def test_headline_table(page):
    head, *rows = page[1].cells("result")
    assert head == [
        [],
        ["known", "100 questions"],
        ["day 1", "48 questions"],
        ["day 2", "48 questions"],
        ["days so far", "mean"],
    ]
    assert rows[0] == [
        ["sleep", "after night 2"],
        ["0.88", "0.80–0.93"],
        ["0.90", "0.78–0.96"],
        ["0.96", "0.86–0.99"],
        ["0.93"],
    ]
    assert [row[0][0] for row in rows] == [
        "sleep",
        "plain SFT",
        "joint upper bound",
        "base model",
        "open book",
    ]
    assert [cell[0] for cell in rows[1][1:]] == ["0.17", "0.11", "0.93", "0.52"]
    assert [cell[0] for cell in rows[3][1:]] == ["0.99", "0.06", "0.02", "0.04"]
    assert [cell[0] for cell in rows[4][1:]] == ["–", "0.94", "0.98", "0.96"]


def test_retention_matrix_marks_later_days(page):
    sleep, sft = page[1].tables["heat"]
    look = [[(" ".join(text), kind) for kind, text in row] for row in sleep]
    assert look == [
        [("after", ""), ("known", ""), ("day 1", ""), ("day 2", "")],
        [("base", ""), ("0.99", ""), ("0.06", "future"), ("0.02", "future")],
        [("night 1", ""), ("0.95", ""), ("0.92", ""), ("0.08", "future")],
        [("night 2", ""), ("0.88", ""), ("0.90", ""), ("0.96", "")],
    ]
    assert [next(" ".join(text) for _, text in row) for row in sft] == [
        "after",
        "base",
        "night 1",
        "night 2",
    ]
    shades = dict(re.findall(r'background:(#\w+);color:#\w+">(0\.99|0\.17)<', page[0]))
    assert len(shades) == 2, "a high and a low number have different colours"


def test_page_has_no_external_resources_and_escapes_texts(page):
    text, parsed = page
    assert "script" not in parsed.tags and "link" not in parsed.tags
    assert all(address.startswith("#") for address in parsed.addresses), parsed.addresses
    assert (
        "http" not in text and "@import" not in text and set(re.findall(r"url\((.)", text)) <= {"#"}
    )
    assert (
        "&lt;script&gt;alert(1)&lt;/script&gt;" in text
        and "reward &lt;1&gt;" in text
        and "a &amp; b" in text
    )


def test_answers_are_marked_correct_or_wrong(page):
    answers, failures = page[1].tables["plain"]
    assert answers[1] == [
        ("", ["day 1"]),
        ("", ["Q : where ? A :"]),
        ("", ["lisbon"]),
        ("wrong", ["✗ <script>alert(1)</script>"]),
        ("right", ["✓ lisbon"]),
    ]
    assert [[" ".join(t) for _, t in row] for row in failures[1:]] == [
        ["seed.grad_norm", "value was not finite (NaN or infinite)", "2"],
        ["reward <1>", "timed out", "3"],
    ]


def test_curves_have_units_and_nights_and_missing_ones_are_named(page):
    text, _ = page
    titles = re.findall(r"<figure><h3>(.*?)</h3>", text)
    assert titles == [
        "Seeding loss",
        "Divergence",
        "Imitation reward",
        "Log-probability gap",
        "Throughput",
        "Weight push: time",
        "Weight push: size",
    ]
    assert "Not recorded in this run: baselines and wake, drift from the untouched base." in text
    divergence = text.split("<h3>Divergence</h3>")[1].split("</figure>")[0]
    for label in ("nats per token", "seeding step, all nights", "night 2", "new", "replay"):
        assert f">{label}</text>" in divergence
    assert ">edit distance<" not in text, "a curve without a value has no legend"


def test_header_status_and_configuration(page):
    text, _ = page
    assert "Finished in 8:32 min." in text and "2026-09-21 14:13 UTC" in text
    assert re.search(r"<i>seeds</i> 7<.*<i>commit</i> 3f2a9c1<", text)
    assert re.search(r"<details><summary>.*?</summary><pre>.*&#34;steps&#34;: 4", text, re.DOTALL)


def test_report_of_an_unfinished_run_with_torn_line(tmp_path):
    live(tmp_path, done=False)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"t": 17')
    text = write_report(tmp_path).read_text()
    lines = len((tmp_path / "metrics.jsonl").read_text().splitlines())
    assert "Unfinished: the journal has no end of the run; its last entry is “completion”." in text
    assert f"Skipped: metrics.jsonl line {lines}, incomplete" in text
    assert Page(text).cells("result")[1][0] == ["sleep", "after night 2"]


def test_report_of_a_run_without_evaluations(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.log("run", task="world", model="tiny")
    journal.log("done", seconds=3, status="failed", reason="engine <died>")
    text = write_report(tmp_path).read_text()
    assert (
        "Failed after 3.0 s: engine &lt;died&gt;" in text
        and "No evaluation after a night yet." in text
    )


def test_mean_excludes_later_days(tmp_path):
    Journal(tmp_path / "metrics.jsonl").log(
        "evaluate", after="night 1", method="sleep", row={"known": 1, "day 1": 0.5, "day 2": 0.1}
    )
    parsed = Page(write_report(tmp_path).read_text())
    assert [cell[0] for cell in parsed.cells("result")[1][1:]] == ["1.00", "0.50", "0.10", "0.50"]
    assert [kind for kind, _ in parsed.tables["result"][0][1]] == ["", "", "", "none", ""]


@pytest.mark.parametrize("content", [None, "", '{"t": 1, "ki'])
def test_missing_metrics_give_one_line_error(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(InputError) as caught:
        write_report(tmp_path)
    assert str(tmp_path / "metrics.jsonl") in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_unwritable_report_error_names_path(tmp_path):
    live(tmp_path)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(RunError, match=r"cannot write the report .*report.html"):
        write_report(tmp_path)


def test_summary_over_seeds(tmp_path):
    for seed, known in enumerate((0.80, 0.85, 0.90)):
        (tmp_path / str(seed)).mkdir()
        live(tmp_path / str(seed), known=known)
    lines = summarize(tmp_path / str(seed) for seed in range(3)).splitlines()
    cells = [re.split(r"  +", line) for line in lines[1:]]
    assert cells[0] == ["method", "after", "known", "day 1", "day 2", "all days", "of joint"]
    assert cells[1] == [
        "sleep",
        "night 2",
        "0.85 (0.80..0.90)",
        "0.90 (0.90..0.90)",
        "0.96 (0.96..0.96)",
        "0.93 (0.93..0.93)",
        "0.95 (0.95..0.95)",
    ]  # 0.93 of 0.98
    assert cells[3][-2:] == ["0.98 (0.98..0.98)", "1.00 (1.00..1.00)"]
    assert [row[0] for row in cells[1:]] == ["sleep", "plain SFT", "joint upper bound"]


def test_summary_in_natural_language_has_kinds_likelihoods_and_drift(tmp_path):
    """Of every method, baselines too, as mean and range over runs."""
    for seed, nll in enumerate((16.0, 20.0)):
        (tmp_path / str(seed)).mkdir()
        journal = Journal(tmp_path / str(seed) / "metrics.jsonl")
        for context, value in (("closed", 32.0), ("gold", 16.0)):
            journal.log(
                "context", after="night 1", context=context, row={}, nll={"all days": value}
            )
        for method, drift in (("sleep", 0.02), ("sft_self_written", None)):
            journal.log(
                "evaluate",
                after="night 1",
                method=method,
                row={"day 1": 0.5},
                kinds={"verbatim": 0.5},
                nll={"all days": nll},
                choice={"all days": 0.75},
                drift=drift,
            )
    lines = summarize(tmp_path / str(seed) for seed in range(2)).splitlines()
    head, sleep, baseline = [re.split(r"  +", line) for line in lines[1:]]
    assert head[5:] == ["verbatim", "NLL", "recovered", "choice", "drift"]
    values = ["0.50 (0.50..0.50)", "18.0 (16.0..20.0)", "0.88 (0.75..1.00)", "0.75 (0.75..0.75)"]
    assert sleep[5:] == [*values, "0.020 (0.020..0.020)"]
    assert baseline[0] == "SFT, self-written" and baseline[5:] == [*values, "-"]


def test_summary_shows_runs_that_stopped_early(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    live(tmp_path / "a")
    Journal(tmp_path / "b" / "metrics.jsonl").log(
        "evaluate", after="night 1", method="sleep", row={"known": 0.5}
    )
    text = summarize([tmp_path / "a", tmp_path / "b"])
    assert (
        "night 2 | night 1" in text
        and "0.69 (0.50..0.88)" in text
        and "0.90 (0.90..0.90) [1]" in text
    )
    (tmp_path / "b" / "metrics.jsonl").write_text(json.dumps({"kind": "wake"}) + "\n")
    with pytest.raises(
        InputError, match="expected an evaluation after a night, got none in 1 runs"
    ):
        summarize([tmp_path / "b"])


def test_modules_have_no_heavy_imports():
    code = (
        "import sys, sleep_rl.journal.journal, sleep_rl.session.console, sleep_rl.report.page;"
        "import cluster.tracking.client;"
        "print([m for m in ('ray', 'vllm', 'deepspeed', 'wandb', 'torch', 'matplotlib') if m "
        "in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )
