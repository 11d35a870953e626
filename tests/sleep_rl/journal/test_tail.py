"""Incremental reading of a growing journal, also after truncation and replacement."""

import json
import os

import pytest

from sleep_rl.contracts.errors import InputError
from sleep_rl.journal.tail import Follower


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def line(step, t=None):
    return json.dumps({"t": t or 1e9 + step, "kind": "seed", "step": step}).encode() + b"\n"


def append(path, *parts):
    with open(path, "ab") as file:
        file.writelines(parts)


def steps(follower):
    anew, records = follower.more()
    return anew, [r["step"] for r in records]


def test_records_are_returned_once_and_incomplete_line_later(path):
    follower = Follower(path)
    assert follower.more() == (False, [])  # not there yet
    append(path, line(0), line(1), line(2)[:9])
    assert steps(follower) == (False, [0, 1]) and follower.offset < follower.size
    assert steps(follower) == (False, [])
    append(path, line(2)[9:], line(3))
    assert (
        steps(follower) == (False, [2, 3])
        and follower.offset == follower.size == path.stat().st_size
    )


def test_only_added_bytes_are_read(path, monkeypatch):
    append(path, *(line(step) for step in range(1000)))
    follower = Follower(path)
    read = []
    follower.more()
    pread = os.pread
    monkeypatch.setattr(
        "sleep_rl.journal.tail.os.pread", lambda *a: read.append(len(got := pread(*a))) or got
    )
    append(path, line(1000))
    assert steps(follower) == (False, [1000]) and sum(read) <= 2 * len(line(1000))


def test_long_journal_and_long_lines_are_read_in_pieces(path):
    long = json.dumps({"t": 1, "kind": "seed", "step": 40, "x": "a" * 900}).encode() + b"\n"
    append(path, *(line(step) for step in range(40)), long)
    follower = Follower(path, piece=200)
    found = []
    calls = 0
    while follower.offset != follower.size or not calls:
        calls += 1
        assert calls < 100
        found += steps(follower)[1]
    assert found == list(range(41)) and calls > 6


@pytest.mark.parametrize("again", [1, 3, 9], ids=["shorter", "as long", "longer"])
def test_truncated_journal_is_reported_as_changed(path, again):
    append(path, *(line(step) for step in range(5)))
    follower = Follower(path)
    assert steps(follower) == (False, [0, 1, 2, 3, 4])
    os.truncate(path, 2 * len(line(0)))
    append(path, *(line(step, t=2e9 + step) for step in range(2, 2 + again)))
    assert steps(follower) == (True, list(range(2 + again)))


def test_replaced_file_is_read_from_the_start(path):
    append(path, line(0), line(1))
    follower = Follower(path)
    follower.more()
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    os.replace(copy, path)
    assert steps(follower) == (True, [0, 1])
    path.unlink()
    assert steps(follower) == (True, []) and steps(follower) == (False, [])


def test_invalid_lines_are_counted(path):
    rubbish = [b'{"t": 1, "ki', b"\xff\xfe", b"[1]", b"7", b'{"kind": "seed"}', b"", b"[" * 9000]
    append(path, line(0), *(text + b"\n" for text in rubbish), line(1))
    follower = Follower(path)
    assert steps(follower) == (False, [0, 1]) and follower.torn == 6


def test_unreadable_journal_gives_one_line_error(path):
    path.mkdir()
    with pytest.raises(InputError, match="cannot read metrics: Is a directory"):
        Follower(path).more()
