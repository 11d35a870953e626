"""The retention matrix: rows, marks and intervals."""

import pytest

from sleep_rl.journal.retention import Retention, nights_lived, wilson_interval
from sleep_rl.journal.schema import WakePhase, parse


def evaluation(after, row, method="sleep", t=0.0, open_book=None, **more):
    record = {
        "t": t,
        "kind": "evaluate",
        "after": after,
        "method": method,
        "row": row,
        "open_book": open_book,
        **more,
    }
    return parse(record)


def test_newest_row_per_night_and_first_open_book_are_kept():
    retention = Retention.of(
        [
            evaluation("base", {"day 1": 0.1, "known": 0.9}, t=1, open_book={"day 1": 0.8}),
            evaluation(
                "night 1",
                {"known": 0.8, "day 1": 0.5, "day 2": 0.0},
                t=2,
                open_book={"day 1": 0.3, "day 2": None},
            ),
            evaluation("night 1", {"known": 0.7, "day 1": 0.6, "day 2": 0.0}, t=3),
            evaluation("night 2", {"known": 0.4}, method="sft", t=4),
            WakePhase(t=0.0, step=1),
        ]
    )
    assert retention.columns == ["known", "day 1", "day 2"] and retention.methods == [
        "sleep",
        "sft",
    ]
    assert retention.last("sleep").row == {"known": 0.7, "day 1": 0.6, "day 2": 0.0}
    assert retention.base.row["known"] == 0.9 and retention.open_book == {"day 1": 0.8}
    future = {
        (a, c): retention.future(a, c) for a in ("base", "night 1") for c in retention.columns
    }
    assert [k for k, v in future.items() if v] == [
        ("base", "day 1"),
        ("base", "day 2"),
        ("night 1", "day 2"),
    ]
    assert [nights_lived(a) for a in ("base", "night 12", "joint")] == [0, 12, None]


def test_open_book_does_not_replace_closed_book():
    retention = Retention.of(
        [
            evaluation("night 1", {"day 1": 0.5}, t=1),
            evaluation("night 1", {}, t=2, open_book={"day 1": 0.9}),
        ]
    )
    assert retention.last("sleep").row == {"day 1": 0.5} and retention.open_book == {"day 1": 0.9}


def test_rows_have_values_marks_intervals_and_means():
    retention = Retention.of(
        [
            evaluation("base", {"known": 1.0, "day 1": 0.5, "day 2": 0.0}, t=1, n={"known": 10}),
            evaluation("night 1", {"known": 0.9, "day 1": 0.75, "day 2": 0.25}, t=2),
            evaluation("night 1", {"known": 0.5}, method="sft", t=2, open_book={"day 1": 0.8}),
            evaluation("night 1", {"known": 0.5}, method="of tomorrow", t=2),
        ]
    )
    base, sleep, sft, other, open_book = retention.rows()
    labels = [row.source.label for row in (base, sleep, sft, other, open_book)]
    assert labels == ["base model", "sleep", "plain SFT", "of tomorrow", "open book"]
    assert [(row.source.kind, row.source.name, row.after) for row in retention.rows()] == [
        ("base", "closed", "base"),
        ("method", "sleep", "night 1"),
        ("method", "sft", "night 1"),
        ("method", "of tomorrow", "night 1"),
        ("context", "gold", ""),
    ]
    assert [cell.column for cell in sleep.cells] == retention.columns
    assert [(cell.value, cell.lived) for cell in sleep.cells] == [
        (0.9, True),
        (0.75, True),
        (0.25, False),
    ]
    assert [cell.lived for cell in base.cells] == [True, False, False]
    assert base.cells[0].interval == wilson_interval(1.0, 10) and base.cells[1].interval is None
    assert (base.mean, sleep.mean, sft.mean) == (0.25, 0.75, None)
    assert [cell.value for cell in open_book.cells] == [None, 0.8, None]
    assert [row.after for row in retention.history("sleep")] == ["base", "night 1"]
    assert Retention().rows() == []


def test_all_days_pools_questions():
    row = {"known": 0.1, "day 1": 0.5, "day 2": 1.0}
    n = {"day 1": 30, "day 2": 10}
    assert Retention.of([evaluation("night 2", row, n=n)]).all_days("sleep") == 0.625
    assert Retention.of([evaluation("night 2", row)]).all_days("sleep") is None


def test_wilson_interval():
    # Wilson (1927) by hand
    assert wilson_interval(0.9, 10) == pytest.approx((0.596, 0.982), abs=5e-4)
    assert wilson_interval(0.0, 48)[0] == 0.0 and wilson_interval(1.0, 48)[1] == pytest.approx(1.0)
