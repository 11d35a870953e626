"""benchmarks/served_answers.py: the same questions of a served model and of the driver."""

from __future__ import annotations

import pytest

from benchmarks import served_answers
from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import CHECKPOINT
from tests.fakes.http_servers import chat_server, says
from tests.fakes.reader import BOUGHT, Purchases, reading_run


def test_questions_are_those_of_all_days_with_an_answer_or_of_a_file(tmp_path):
    questions = served_answers.questions_of(Purchases(), None)
    assert len(questions) == 8 and all(q.answer in BOUGHT.values() for q in questions)
    file = tmp_path / "questions.jsonl"
    file.write_text(
        '{"question": "Who?", "answer": "Ann"}\n{"question": "What?", "kind": "never-told"}\n'
    )
    [asked] = served_answers.questions_of(Purchases(), str(file))
    assert (asked.prompt, asked.answer) == ("Who?", "Ann")


def test_the_chat_endpoint_is_asked_greedily_and_answers_stay_in_order():
    questions = served_answers.questions_of(Purchases(), None)

    def echo(body):
        return says(f"echo {body['messages'][0]['content']}")

    with chat_server(echo) as (url, asked):
        texts = served_answers.ask_server(url, questions, 17)
    assert texts == [f"echo {q.prompt}" for q in questions]
    bodies = [body for _, _, body in asked]
    assert {path for path, _, _ in asked} == {"/v1/chat/completions"}
    assert all((b["temperature"], b["max_tokens"]) == (0, 17) for b in bodies)
    assert all(b["chat_template_kwargs"] == {"enable_thinking": False} for b in bodies)


def test_the_driver_is_asked_closed_book_in_each_form(tmp_path):
    run = reading_run(tmp_path, knows={CHECKPOINT: ["Alice Thorne", "Ned Gray"]})
    run.crew.reply = lambda text, name: f"A {BOUGHT['Alice Thorne']}."
    questions = served_answers.questions_of(run.task, None)
    for form, start in (("chat", "<|im_start|>user\n"), ("raw", "<|endoftext|>Question: ")):
        texts = served_answers.ask_driver(run, questions, form)
        assert served_answers.recall(run.task, questions, texts) == 2 / 8
        asked = [text for name, text in run.crew.asked[-8:] if name == CHECKPOINT]
        assert all(q.prompt in text for q, text in zip(questions, asked, strict=True))
        assert all(text.startswith(start) and "bought" not in text for text in asked)
    assert run.codec.form.name == "chat"


def test_recalls_are_compared_by_the_smallest_over_the_largest():
    assert (
        served_answers.alike([0.5, 0.4, 0.5]) == 0.8
        and served_answers.alike([0.0, 0.0, 0.0]) == 1.0
    )
    assert served_answers.alike([0.0, 0.4]) == 0.0
    lines = served_answers.report(
        {"/v1/chat/completions": 0.5, "driver, raw form": 0.4}, 8
    ).splitlines()
    assert lines[0].split() == ["/v1/chat/completions", "0.500"]
    assert lines[-1] == "smallest over largest    0.800 of 8 questions"


def test_a_missing_answer_is_no_wrong_one():
    task = Purchases()
    questions = served_answers.questions_of(task, None)[:2]
    with pytest.raises(RuntimeError, match=r"Alice Thorne.* no graded answer: .*died"):
        served_answers.recall(task, questions, [Failure("died"), "A blue kite."])
