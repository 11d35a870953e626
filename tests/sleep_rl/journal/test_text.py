"""Formatted durations, names of nights, lines without terminal codes."""

from sleep_rl.journal.text import (
    TAIL_BYTES,
    aligned,
    clock,
    decimal,
    end_of_log,
    last_line,
    night_label,
    without_terminal_codes,
)


def test_clock():
    assert [clock(s) for s in (4.21, 59.97, 83, 7500)] == [
        "4.2 s",
        "1:00 min",
        "1:23 min",
        "2:05:00 h",
    ]


def test_night_label():
    assert [night_label(3, sender) for sender in (0, None, 1, -1)] == [
        "night 3",
        "night 3",
        "night 3, level 1 to 2",
        "night 3, dreams",
    ]


def test_terminal_codes_and_control_characters_are_removed():
    colours = "\x1b[1;31mred\x1b[0m"
    title = "\x1b]0;title\x07\x1b]8;;link\x1b\\text"
    assert without_terminal_codes(f"{colours} {title}\tü\x00\x9b") == "red text\tü"


def test_last_line_of_a_progress_bar():
    assert last_line("one\ntwo 10%\rtwo \x1b[31m100%\x1b[0m \x00\n\n") == "two 100%"
    assert last_line(" \n\r") == last_line("") == ""


def test_columns_are_aligned():
    assert aligned([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc  d"


def test_end_of_log_reads_its_last_bytes_only(tmp_path):
    log = tmp_path / "learner.log"
    log.write_bytes(b"early\n" + b"\n" * TAIL_BYTES)
    assert end_of_log(log) == ""
    log.write_bytes(b"early\nlate \xff\n\n")
    assert end_of_log(str(log)) == "late \ufffd"


def test_a_missing_number_is_a_dash():
    assert (decimal(None), decimal(0.126), decimal(1234.5, ",.0f")) == ("-", "0.13", "1,234")
