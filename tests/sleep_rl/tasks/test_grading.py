"""Grades of free answers: the recall grader, and a judge at a real HTTP endpoint."""

import json
import socket
from pathlib import Path

import pytest

from sleep_rl.contracts.errors import Failure, InputError
from sleep_rl.tasks.grading import JudgeGrader, RecallGrader, gold_recall, tokens, verdict
from tests.fakes.http_servers import chat_server, says
from tests.fakes.processes import LIMIT_S

VERDICTS = Path(__file__).parents[4] / "shared" / "data" / "squad_seal" / "gpt41_grades_8000.jsonl"


@pytest.mark.parametrize(
    "gold,answer,share",
    [
        ("Paul Ehrlich", "It was Paul Ehrlich, in 1909.", 1.0),
        ("the Age of Enlightenment", "age of reason", 2 / 3),
        ("1500", "15 hundred", 0.0),
        ("a b b", "b", 1 / 2),
        ("New York, New York", "new york", 1 / 2),
        ("x", "", 0.0),
    ],
)
def test_gold_recall(gold, answer, share):
    assert gold_recall(gold, answer) == pytest.approx(share)


def test_threshold_and_normalisation():
    grader = RecallGrader()
    asked = [
        ("q", "one two three", "one two"),
        ("q", "one two three four", "four three two"),
        ("q", "The", "the"),
    ]
    assert grader.grade(asked) == [0.0, 1.0, 0.0]
    assert tokens("The U.S.'s  a-b, an X!") == ["u", "s", "s", "b", "x"]


def kappa(a, b):
    """Return Cohen's kappa of two series of verdicts in {0, 1}."""
    n = len(a)
    agreement = sum(x == y for x, y in zip(a, b, strict=True)) / n
    chance = sum(a.count(v) / n * b.count(v) / n for v in (0.0, 1.0))
    return (agreement - chance) / (1 - chance)


def slow_kappa(a, b):
    """Return it from the four cells of the contingency table."""
    pairs = list(zip(a, b, strict=True))
    cells = {cell: pairs.count(cell) for cell in ((0, 0), (0, 1), (1, 0), (1, 1))}
    n = sum(cells.values())
    observed = (cells[0, 0] + cells[1, 1]) / n
    a1 = (cells[1, 0] + cells[1, 1]) / n
    b1 = (cells[0, 1] + cells[1, 1]) / n
    expected = a1 * b1 + (1 - a1) * (1 - b1)
    return (observed - expected) / (1 - expected)


def test_kappa():
    a = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    b = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    assert kappa(a, b) == pytest.approx(slow_kappa(a, b)) and kappa(a, a) == 1.0


@pytest.mark.skipif(
    not VERDICTS.is_file(), reason="the GPT-4.1 verdicts are not beside this checkout"
)
def test_agreement_with_gpt_41():
    rows = [json.loads(line) for line in VERDICTS.read_text().splitlines()]
    mine = RecallGrader().grade([(r["question"], r["gold"], r["pred"]) for r in rows])
    theirs = [float(r["yes"] > r["no"]) for r in rows]
    assert len(rows) == 8000 and kappa(mine, theirs) >= 0.70


@pytest.fixture
def endpoint():
    """(address, requests, replies) of a chat endpoint that sends the `replies` in order."""
    replies = []
    with chat_server(lambda body: replies.pop(0)) as (address, asked):
        yield f"{address}/v1", asked, replies


def test_judge_request(endpoint):
    url, asked, replies = endpoint
    replies += [says("Yes."), says("no"), says("Yes and no"), says("maybe")]
    grader = JudgeGrader(url, "judge-1", key="k", retries=0)
    grades = grader.grade([("q?", "g", "a")] * 2 + [("q?", "g", "  ")] + [("q?", "g", "a")] * 2)
    assert grades[:3] == [1.0, 0.0, 0.0] and all(isinstance(g, Failure) for g in grades[3:])
    assert "neither yes nor no: 'Yes and no'" in grades[3].reason and grader.name == "judge:judge-1"
    path, key, body = asked[0]
    assert (path, key, body["model"], body["temperature"]) == (
        "/v1/chat/completions",
        "Bearer k",
        "judge-1",
        0,
    )
    assert (
        all(word in body["messages"][0]["content"] for word in ("q?", "g", "a")) and len(asked) == 4
    )


def test_unreachable_or_invalid_judge_is_a_failure(endpoint):
    url, _asked, replies = endpoint
    broken = [(200, "{"), (200, "[]"), (200, '{"choices": []}'), says(None)]
    replies += [(500, "x"), (500, "x"), (503, "busy"), says("yes"), *broken]
    grader = JudgeGrader(url, "m", timeout_s=LIMIT_S)
    grades = grader.grade([("q", "g", "a")] * 6)
    assert grades[0].reason == "the judge answered 500 Internal Server Error"
    assert grades[1] == 1.0  # the second try
    assert [g.reason for g in grades[2:]] == ["the judge's reply is not a chat completion"] * len(
        broken
    )
    assert all(g.where == "judge:m" for g in grades if isinstance(g, Failure)) and not replies
    [odd] = JudgeGrader("http://127.0.0.1:9/a b", "m", retries=0).grade([("q", "g", "a")])
    assert isinstance(odd, Failure)
    [gone] = JudgeGrader("http://127.0.0.1:9/v1", "m", timeout_s=LIMIT_S, retries=0).grade(
        [("q", "g", "a")]
    )
    assert gone.reason.startswith("the judge cannot be reached") and gone.where == "judge:m"
    with pytest.raises(InputError, match=r"judge: an address, got 'http://x:y/v1': Invalid port"):
        JudgeGrader("http://x:y/v1", "m")


def test_judge_timeout_is_a_failure():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        [late] = JudgeGrader(url, "m", timeout_s=0.2, retries=0).grade([("q", "g", "a")])
    assert late.reason.startswith("the judge cannot be reached")


def test_verdicts():
    assert (
        verdict("YES") == 1.0
        and verdict(" no, it does not.") == 0.0
        and isinstance(verdict(""), Failure)
    )
