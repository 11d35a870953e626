"""benchmarks/served_answers.py: the same questions of a served model and of the driver."""

from __future__ import annotations

import importlib.util
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import CHECKPOINT
from tests.fakes.reader import BOUGHT, Purchases, reading_run

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "served_answers.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("served_answers", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def chat_server(answer_to):
    """Yield (URL of a server whose answer to a question is `answer_to(question)`, bodies)."""
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            bodies.append((self.path, body))
            content = answer_to(body["messages"][0]["content"])
            answer = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_questions_are_those_of_all_days_with_an_answer_or_of_a_file(script, tmp_path):
    questions = script.questions_of(Purchases(), None)
    assert len(questions) == 8 and all(q.answer in BOUGHT.values() for q in questions)
    file = tmp_path / "questions.jsonl"
    file.write_text(
        '{"question": "Who?", "answer": "Ann"}\n{"question": "What?", "kind": "never-told"}\n'
    )
    [asked] = script.questions_of(Purchases(), str(file))
    assert (asked.prompt, asked.answer) == ("Who?", "Ann")


def test_the_chat_endpoint_is_asked_greedily_and_answers_stay_in_order(script):
    questions = script.questions_of(Purchases(), None)
    with chat_server(lambda text: f"echo {text}") as (url, bodies):
        texts = script.ask_server(url, questions, 17)
    assert texts == [f"echo {q.prompt}" for q in questions]
    assert {path for path, _ in bodies} == {"/v1/chat/completions"}
    assert all((b["temperature"], b["max_tokens"]) == (0, 17) for _, b in bodies)
    assert all(b["chat_template_kwargs"] == {"enable_thinking": False} for _, b in bodies)


def test_the_driver_is_asked_closed_book_in_each_form(script, tmp_path):
    run = reading_run(tmp_path, knows={CHECKPOINT: ["Alice Thorne", "Ned Gray"]})
    run.crew.reply = lambda text, name: f"A {BOUGHT['Alice Thorne']}."
    questions = script.questions_of(run.task, None)
    for form, start in (("chat", "<|im_start|>user\n"), ("raw", "<|endoftext|>Question: ")):
        texts = script.ask_driver(run, questions, form)
        assert script.recall(run.task, questions, texts) == 2 / 8
        asked = [text for name, text in run.crew.asked[-8:] if name == CHECKPOINT]
        assert all(q.prompt in text for q, text in zip(questions, asked, strict=True))
        assert all(text.startswith(start) and "bought" not in text for text in asked)
    assert run.codec.form.name == "chat"


def test_recalls_are_compared_by_the_smallest_over_the_largest(script):
    assert script.alike([0.5, 0.4, 0.5]) == 0.8 and script.alike([0.0, 0.0, 0.0]) == 1.0
    assert script.alike([0.0, 0.4]) == 0.0
    lines = script.report({"/v1/chat/completions": 0.5, "driver, raw form": 0.4}, 8).splitlines()
    assert lines[0].split() == ["/v1/chat/completions", "0.500"]
    assert lines[-1] == "smallest over largest    0.800 of 8 questions"


def test_a_missing_answer_is_no_wrong_one(script):
    task = Purchases()
    questions = script.questions_of(task, None)[:2]
    with pytest.raises(RuntimeError, match=r"Alice Thorne.* no graded answer: .*died"):
        script.recall(task, questions, [Failure("died"), "A blue kite."])
