"""The schema of the journal: valid records, and the invalid field of others."""

import pytest

from sleep_rl.journal.schema import (
    METRICS,
    Completion,
    DreamResult,
    Evaluation,
    InvalidRecord,
    RolledBack,
    SeedStep,
    parse,
)

DREAM = {
    "t": 1.0,
    "kind": "dream",
    "night": 1,
    "round": 1,
    "task": "day1/a",
    "number": 0,
    "text": "a dream",
    "reason": "",
    "importance": None,
    "kept": True,
    "tau_before": 0.5,
    "taus": [0.25, 0.75],
    "reward": 1,
    "gain": 0.0,
    "held_out": None,
}


def at_fault(**record):
    """Return the invalid field of a record; empty if it is valid."""
    try:
        parse({"t": 1.0, **record})
    except InvalidRecord as error:
        return str(error)
    return ""


def evaluate(**more):
    row = {"known": 1.0, "day 1": None}
    return {"kind": "evaluate", "after": "base", "method": "sleep", "row": row, **more}


def test_parse_returns_typed_entry():
    entry = parse(DREAM)
    assert isinstance(entry, DreamResult) and entry.kind == "dream"
    assert (entry.taus, entry.held_out, entry.logprob) == ([0.25, 0.75], None, None)
    entry = parse({"t": 2, "kind": "seed", "step": 4, "loss": 0.5, "of_tomorrow": {}})
    assert isinstance(entry, SeedStep) and (entry.t, entry.step, entry.loss) == (2, 4, 0.5)
    assert not hasattr(entry, "of_tomorrow")


@pytest.mark.parametrize("name", [name for name in DREAM if name not in ("kind",)])
def test_missing_required_field_is_invalid(name):
    record = {key: value for key, value in DREAM.items() if key != name}
    with pytest.raises(InvalidRecord, match=f"^{name}$"):
        parse(record)


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({"kind": "seed", "step": 0, "loss": None}, ""),
        ({"kind": "seed", "step": None}, "step"),
        ({"kind": "seed", "step": "one"}, "step"),
        ({"kind": "seed", "step": 0, "night": None}, ""),
        ({"kind": "seed", "step": 0, "night": []}, "night"),
        ({"kind": "seed", "step": 0, "loss": "low"}, "loss"),
        ({"kind": "seed", "step": 0, "loss": float("nan")}, "loss"),
        ({"kind": "seed", "step": 0, "loss": float("inf")}, "loss"),
        ({"kind": "seed", "step": 10**30}, "step"),
        ({"kind": "seed", "step": 0, "nonfinite": ["loss"]}, ""),
        ({"kind": "seed", "step": 0, "nonfinite": None}, "nonfinite"),
        ({"kind": "seed", "step": 0, "nonfinite": [1]}, "nonfinite"),
        (evaluate(), ""),
        (evaluate(open_book=None, n={"known": 10}), ""),
        (evaluate(row=None), "row"),
        (evaluate(row={"known": "much"}), "row"),
        (evaluate(n={"known": None}), "n"),
        (evaluate(method={}), "method"),
        (evaluate(deeper=[1]), "deeper"),
        (evaluate(t=None), "t"),
        (evaluate(t="now"), "t"),
        ({"kind": "of_tomorrow", "step": "?"}, ""),
        ({"kind": "of_tomorrow", "t": None}, "t"),
        ({"kind": "torn", "line": 1}, ""),
        ({"kind": "rolled_back", "before": 0.9, "after": 0.5}, ""),
        ({"kind": "rolled_back", "after": "night 1"}, "after"),
        ({**DREAM, "kept": 1}, "kept"),
        ({**DREAM, "taus": None}, "taus"),
        ({"kind": "run", "config": []}, "config"),
        ({"kind": "scaled", "worker": "rollout-1"}, "joined"),
    ],
)
def test_field_of_wrong_type_is_invalid(record, field):
    assert at_fault(**record) == field


def test_meanings_differ_by_kind():
    kinds = (Evaluation, RolledBack, Completion, DreamResult)
    evaluation, rolled_back, completion, dream = (METRICS[cls.kind] for cls in kinds)
    assert evaluation["after"] != rolled_back["after"] and "score" in completion
    assert dream["kept"][0] == "whether it was selected for trials"
