"""The table beside the accuracies: what is recovered, what answers cost, when nights are paid."""

import pytest

from sleep_rl.journal.measures import break_even, recovered, table
from sleep_rl.journal.retention import Retention
from sleep_rl.journal.schema import parse


def evaluation(after, nll=None, method="sleep", **more):
    likelihood = None if nll is None else {"day1": nll, "all days": nll}
    row = {"known": 1.0, "day1": 0.5}
    record = {"after": after, "method": method, "row": row, "nll": likelihood, **more}
    return parse({"t": len(after), "kind": "evaluate", **record})


def in_context(context, nll=None, seconds=None, row=None, **more):
    record = {
        "after": "night 1",
        "context": context,
        "row": row or {"day1": 0.25},
        "nll": None if nll is None else {"all days": nll},
        "answer_seconds": seconds,
        **more,
    }
    return parse({"t": 1.0, "kind": "context", **record})


def night(seconds, kind="night", **more):
    return parse({"t": 1.0, "kind": kind, "seconds": seconds, **more})


def test_recovered_is_the_share_of_what_the_document_gains():
    before = 32.0
    opened = 16.0
    after = 20.0
    retention = Retention.of([in_context("closed", before), in_context("gold", opened)])
    assert recovered(retention, after) == (32 - 20) / (32 - 16) == 0.75
    assert recovered(retention, opened) == 1.0 and recovered(retention, 36.0) == -0.25
    assert recovered(retention, None) is None
    assert recovered(Retention.of([in_context("closed", before)]), after) is None
    equal = Retention.of([in_context("closed", before), in_context("gold", before)])
    assert recovered(equal, after) is None


def test_a_night_is_paid_for_after_so_many_questions():
    """Two nights of 200 s and a wake phase of 50 s, against 1.5 s saved at each answer."""
    entries = [night(200.0), night(50.0, "wake", step=1), night(200.0)]
    retention = Retention.of([*entries, evaluation("night 2", answer_seconds=0.5)])
    reads = in_context("retrieval", seconds=2.0)
    assert retention.night_seconds == 450 and break_even(retention, reads) == 300
    assert 300 * 2.0 == 450 + 300 * 0.5
    assert break_even(retention, in_context("retrieval", seconds=0.5)) == float("inf")
    assert break_even(retention, in_context("retrieval")) is None
    assert break_even(Retention.of(entries), reads) is None


def test_the_table_has_the_columns_that_were_measured():
    cost = {"prompt_tokens": 40.0, "answer_seconds": 0.5}
    entries = [
        in_context("closed", 32.0, 0.5, kinds={"verbatim": 0.0}, prompt_tokens=40.0),
        in_context("gold", 16.0, 1.0, kinds={"verbatim": 1.0}, choice={"all days": 1.0}),
        in_context("retrieval", None, 0.25, kinds={"verbatim": 0.9}, prompt_tokens=1234.0),
        in_context("memory+retrieval", None, 1.0),
        night(100.0),
        evaluation(
            "night 1",
            20.0,
            kinds={"verbatim": 0.5},
            as_base={"never-told": 0.8, "deleted": 0.6},
            **cost,
        ),
        evaluation(
            "night 1",
            40.0,
            "sft",
            kinds={"verbatim": 0.25},
            old_answers={"corrected": 0.5, "deleted": 0.7},
            drift=0.1,
        ),
    ]
    head, rows = table(Retention.of(entries))
    assert head == [
        "method",
        "after",
        "verbatim",
        "never told",
        "deleted",
        "old answer",
        "deleted answer",
        "NLL",
        "recovered",
        "choice",
        "prompt tokens",
        "s/answer",
        "break-even (answers)",
    ]
    assert [" ".join(row) for row in rows] == [
        "base model night 1 0.00 - - - - 32.0 - - 40 0.50 -",
        "sleep night 1 0.50 0.80 0.60 - - 20.0 0.75 - 40 0.50 -",
        "plain SFT night 1 0.25 - - 0.50 0.70 40.0 -0.50 - - - -",
        "open book night 1 1.00 - - - - 16.0 - 1.00 - 1.00 200",
        "retrieval night 1 0.90 - - - - - - - 1,234 0.25 never",
        "sleep with retrieval night 1 - - - - - - - - - 1.00 -",
    ]


def test_a_task_without_natural_language_has_no_such_table():
    assert table(Retention.of([evaluation("night 1"), night(3.0)])) == ([], [])


def test_contexts_are_rows_of_the_retention_table():
    retention = Retention.of(
        [
            parse(
                {
                    "t": 0,
                    "kind": "evaluate",
                    "after": "base",
                    "method": "sleep",
                    "row": {"known": 0.9},
                    "probes": {"piqa": 0.6},
                }
            ),
            parse(
                {
                    "t": 1,
                    "kind": "evaluate",
                    "after": "day 1",
                    "method": "sleep",
                    "row": {},
                    "open_book": {"day1": 0.8},
                }
            ),
            in_context("closed", row={"day1": 0.1}, n={"day1": 10}),
            in_context("retrieval", row={"day1": 0.7}, n={"day1": 10}),
            in_context("memory+retrieval", row={"day1": 0.75}),
            evaluation("night 1", drift=0.02, probes={"piqa": 0.5}),
        ]
    )
    base, sleep, open_book, *contexts = retention.rows()
    values = [(cell.column, cell.value, cell.lived) for cell in base.cells]
    # the untouched base, closed book, was asked before the night
    assert values == [("known", 0.9, True), ("day1", 0.1, True)]
    assert base.cells[1].questions == 10 and base.drift is None and base.probes == {"piqa": 0.6}
    labels = [(row.source.label, row.after, row.cells[1].value) for row in contexts]
    assert labels == [("retrieval", "night 1", 0.7), ("sleep with retrieval", "night 1", 0.75)]
    assert open_book.source.label == "open book" and open_book.cells[1].value == 0.8
    assert (sleep.drift, sleep.probes) == (0.02, {"piqa": 0.5})
    assert retention.probes == ["piqa"]


@pytest.mark.parametrize("field", ["context", "row", "after"])
def test_a_context_record_needs_its_fields(field):
    from sleep_rl.journal.schema import InvalidRecord

    record = {"t": 1, "kind": "context", "after": "night 1", "context": "gold", "row": {}}
    parse(record)
    with pytest.raises(InvalidRecord, match=field):
        parse({name: value for name, value in record.items() if name != field})
