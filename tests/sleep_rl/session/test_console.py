"""The console: plain lines in log files, progress bars on terminals, tables after each night."""

import io
import os
import pty
import re
import select
import time

import pytest

from sleep_rl.journal.journal import Journal, read
from sleep_rl.session import console as console_module
from sleep_rl.session.console import Console
from sleep_rl.session.phase_progress import PhaseProgress


def plain(every=3600.0):
    stream = io.StringIO()
    return Console(stream, every=every), stream


def evaluation(after, method, row, t, open_book=None):
    return {
        "t": t,
        "kind": "evaluate",
        "after": after,
        "method": method,
        "row": row,
        "open_book": open_book,
    }


def test_log_file_gets_plain_lines(monkeypatch):
    # set by some CI systems: colour codes must not reach the log all the same
    monkeypatch.setenv("FORCE_COLOR", "1")
    console, stream = plain()
    with console.phase("night 1: seeding", total=200) as tick:
        for _ in range(200):
            tick(1, "loss 0.31")
    first, last = stream.getvalue().splitlines()
    assert first == "night 1: seeding: 0/200"
    assert re.fullmatch(
        r"night 1: seeding: done in [\d.:]+ (s|min), 200/200, [\d,.]+(/s| s each), loss 0\.31", last
    )
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", stream.getvalue())


def test_progress_lines_have_count_rate_time_left_and_note(monkeypatch):
    console, stream = plain(every=0.0)
    began = PhaseProgress("seeding", 4, began=100.0, reported=100.0)
    monkeypatch.setattr(console_module, "PhaseProgress", lambda name, total: began)
    monkeypatch.setattr(time, "monotonic", lambda: 100.25)
    with console.phase("seeding", total=4) as tick:
        tick(2, "loss 0.5")
    assert stream.getvalue().splitlines()[1] == "seeding: 2/4, 8.0/s, 0.2 s left, loss 0.5"


def test_phase_without_total_and_failed_phase():
    console, stream = plain()
    with console.phase("loading the engine"):
        pass
    with pytest.raises(KeyError), console.phase("sampling", total=9) as tick:
        tick(3)
        raise KeyError("worker")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "loading the engine ..." and re.fullmatch(
        r"loading the engine: done in "
        r"[\d.:]+ (s|min)",
        lines[1],
    )
    assert re.fullmatch(r"sampling: stopped in [\d.:]+ (s|min), 3/9, [\d,.]+(/s| s each)", lines[3])


def test_current_is_the_innermost_phase():
    console = Console(io.StringIO())
    assert console.current() == ""
    with console.phase("night 1"):
        with console.phase("seeding", total=3):
            assert console.current() == "seeding"
        assert console.current() == "night 1"
    assert console.current() == ""


def test_markup_is_not_interpreted_and_lines_are_not_wrapped():
    console, stream = plain()
    console.say("[bold]x[/bold] [/oops] " + "y" * 400)
    assert stream.getvalue() == "[bold]x[/bold] [/oops] " + "y" * 400 + "\n"


def test_terminal_gets_progress_bars_and_is_restored(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal:
        console = Console(terminal)
        with console.phase("night 1", total=10) as outer, console.phase("push [student]") as inner:
            outer(4, "loss 0.25")
            inner()
            console._progress.refresh()
        console.close()
        terminal.flush()
        written = b""
        # a terminal hands out what it has piece by piece
        while select.select([reader], [], [], 0.5)[0]:
            written += os.read(reader, 1 << 16)
    shown = written.decode()
    os.close(reader)
    assert (
        "4/10" in shown and "loss 0.25" in shown and "push [student]" in shown and "\x1b[" in shown
    )
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") >= 1  # the cursor is visible again


def test_console_as_journal_sink(tmp_path):
    console, stream = plain()
    journal = Journal(tmp_path / "m.jsonl", [console])
    journal.log("run", task="world", model="tiny")
    journal.log(
        "evaluate",
        after="base",
        method="sleep",
        row={"known": 0.99, "day 1": 0.06},
        open_book={"day 1": 0.97},
    )
    journal.log(
        "night",
        day="day 1",
        seconds=83,
        steps=200,
        loss=0.05,
        divergence=float("nan"),
        reward_mean=0.8,
        tokens_sampled=1234567,
        tokens_trained=10,
    )
    journal.log("seed", step=1, loss=0.5)
    journal.log(
        "evaluate",
        after="night 1",
        method="sleep",
        row={"known": 0.9, "day 1": 0.94, "day 2": 0.05},
    )
    journal.log("failure", where="reward 1", reason="timed out", count=3)
    journal.log("evaluate", after="night 1", method="sft", row={"known": 0.4, "day 1": 0.9})
    journal.log("done", seconds=125, status="ok")
    journal.close()
    text = stream.getvalue()
    assert not any(r["kind"] == "sink_failed" for r in read(tmp_path / "m.jsonl"))
    assert "base model: known 0.99, day 1 0.06\n" in text
    assert (
        "night of day 1: 200 steps in 1:23 min, loss 0.050, divergence not finite, reward 0.80, "
        "1,234,567 tokens" in text
    )
    assert "warning: reward 1: timed out (3 x)\n" in text and text.endswith("done in 2:05 min\n")
    first = text.split("after night 1: share of correct")[1]
    final = text.split("result: share of correct")[1]
    assert re.search(
        r"sleep +night 1 +0\.90 +0\.94 +- "
        r"*\n",
        first,
    ), "a day that was not lived yet has no number"
    assert "plain SFT" not in first.split("warning")[0]
    assert re.search(
        r"method +after +known +day 1 +day "
        r"2",
        final,
    ) and re.search(r"base model +0\.99 +- +- *\n", final)
    assert re.search(
        r"plain SFT +night 1 +0\.40 +0\.90 +- "
        r"*\n",
        final,
    ) and re.search(r"open book +- +0\.97 +-", final)


def test_table_has_the_newest_row_of_each_method():
    console, stream = plain()
    for t, (after, method, value) in enumerate(
        [("night 1", "sft", 0.3), ("night 1", "sleep", 0.8), ("night 2", "sleep", 0.7)]
    ):
        console.log(evaluation(after, method, {"known": value}, t))
    table = stream.getvalue().split("after night 2")[1]
    assert re.search(r"sleep +night 2 +0\.70", table) and re.search(
        r"plain SFT +night 1 "
        r"+0\.30",
        table,
    )
    assert table.index("sleep") < table.index("plain SFT")


def test_table_of_a_resumed_run_has_earlier_rows():
    console, stream = plain()
    console.recall(
        [
            evaluation("base", "sleep", {"known": 0.9}, 0),
            evaluation("night 1", "sleep", {"known": 0.8, "day 1": 0.7}, 1),
        ]
    )
    console.log(evaluation("night 2", "sleep", {"known": 0.75, "day 1": 0.6, "day 2": 0.5}, 2))
    assert re.search(r"base model +0\.90 +- +- *\n", stream.getvalue())
    assert re.search(r"sleep +night 2 +0\.75 +0\.60 +0\.50", stream.getvalue())


def test_open_book_evaluation_is_one_line():
    console, stream = plain()
    console.log(evaluation("night 1", "sleep", {}, 0, open_book={"day 2": 0.98}))
    assert stream.getvalue() == "open book, night 1: day 2 0.98\n"


def test_failed_run_shows_the_reason():
    console, stream = plain()
    console.log(
        {
            "t": 0,
            "kind": "done",
            "seconds": 3,
            "status": "failed",
            "reason": "loss is NaN at step 7",
        }
    )
    assert stream.getvalue() == "failed after 3.0 s: loss is NaN at step 7\n"


def test_unencodable_names_are_replaced():
    raw = io.BytesIO()
    console = Console(io.TextIOWrapper(raw, encoding="ascii"))
    console.say("day é")
    console._rich.file.flush()
    assert raw.getvalue() == b"day ?\n"
