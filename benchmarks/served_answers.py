"""Compare the answers of a served run with those that its driver evaluates, closed book.

    .venv/bin/python benchmarks/served_answers.py RUN [--questions FILE]

RUN is the folder of a run of task documents that has slept. Its questions (or those of FILE, jsonl
of question and answer) are asked three times with greedy decoding: of `sleep-rl serve RUN` over
/v1/chat/completions, and of the driver's own engine in the chat form and in the raw form. Printed
are the three recalls, and the smallest as a share of the largest; the exit code is 1 where that is
below 0.95.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sleep_rl.config.schema import Config
    from sleep_rl.contracts.errors import Failure
    from sleep_rl.contracts.records import Question
    from sleep_rl.contracts.roles import Task
    from sleep_rl.session.context import RunContext

ALIKE = 0.95  # smallest share of the largest recall
FORMS = ("chat", "raw")
GREETING = re.compile(r"answers at (http\S+)/v1")
LIMIT_S = 900  # for the start of the server, and for an answer
AT_ONCE = 8  # requests in flight


def questions_of(task: Task, file: str | None) -> list[Question]:
    """Return the questions with an answer: of all days, or those of a jsonl file."""
    from sleep_rl.contracts.records import Question
    from sleep_rl.tasks.documents.questions import questions

    if file is None:
        return [q for day in task.days() for q in day.questions if q.answer]
    asked = questions(file, "", "--questions")
    return [Question(f"{n}", q.question, q.answer) for n, q in enumerate(asked) if q.answer]


def recall(task: Task, questions_N: Sequence[Question], texts_N: Sequence[str | Failure]) -> float:
    """Return the mean grade of the answers. Raises RuntimeError where one is missing, since a
    missing answer is no wrong one.
    """
    grades = []
    for question, text in zip(questions_N, texts_N, strict=True):
        grade = task.grade(question, text) if isinstance(text, str) else text
        if not isinstance(grade, int | float):
            raise RuntimeError(f"question {question.id} has no graded answer: {grade}")
        grades.append(float(grade))
    return sum(grades) / len(grades)


def alike(recalls: Sequence[float]) -> float:
    """Return the smallest recall as a share of the largest; 1 where all are 0."""
    return min(recalls) / max(recalls) if max(recalls) > 0 else 1.0


# ---- the served model


@contextmanager
def server(run: str, options: Sequence[str]) -> Iterator[str]:
    """Yield the URL of `sleep-rl serve RUN` in a process of its own, and end it."""
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "sleep_rl", "serve", run, "--port", "0", *options],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            yield _url(process, out)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _url(process: subprocess.Popen, out) -> str:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        out.seek(0)
        found = GREETING.search(out.read())
        if found:
            return found[1]
        time.sleep(1)
    out.seek(0)
    ended = process.poll()
    what = f"did not answer within {LIMIT_S} s" if ended is None else f"ended with {ended}"
    raise RuntimeError(f"sleep-rl serve {what}: {out.read()[-500:]}")


def ask_server(url: str, questions_N: Sequence[Question], max_tokens: int) -> list[str]:
    """Return the answers of the chat endpoint, greedily decoded, to one user's turn each."""

    def ask(question: Question) -> str:
        body = {
            "messages": [{"role": "user", "content": question.prompt}],
            "temperature": 0,
            "max_tokens": max_tokens,
            "chat_template_kwargs": {"enable_thinking": False},
        }
        request = urllib.request.Request(
            f"{url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
            return json.load(response)["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(ask, questions_N))


# ---- the driver's evaluation


def ask_driver(run: RunContext, questions_N: Sequence[Question], form: str) -> list[str | Failure]:
    """Return the closed-book answers of an evaluation in `form`: chat or raw."""
    from sleep_rl.contracts.records import CHECKPOINT
    from sleep_rl.driver.measures.answers import answer, requests_of
    from sleep_rl.text.codec import PromptCodec

    own = run.codec
    codec = PromptCodec(run.task, own.tokenizer, form, own.ends, own.stop)
    run = replace(run, codec=codec)
    return answer(run, requests_of(run, questions_N), CHECKPOINT)


def driver_recalls(
    config: Config, task: Task, model: str, questions_N: Sequence[Question]
) -> dict[str, float]:
    """Return form -> recall of `model` (a memory folder or checkpoint) in an evaluation."""
    from cluster.run_workers import RunSetup, run_workers
    from sleep_rl.journal.journal import Journal
    from sleep_rl.session.console import Console

    with tempfile.TemporaryDirectory(prefix="served-answers-") as out:
        setup = RunSetup(config, task, Path(out), Console())
        journal = Journal(Path(out) / "metrics.jsonl")
        try:
            with run_workers(setup, model, journal, learners=False) as run:
                return {
                    form: recall(task, questions_N, ask_driver(run, questions_N, form))
                    for form in FORMS
                }
        finally:
            journal.close()


def report(recalls: dict[str, float], count: int) -> str:
    """Return the lines to print."""
    lines = [f"{name:<24} {value:.3f}" for name, value in recalls.items()]
    share = alike(list(recalls.values()))
    return "\n".join([*lines, f"smallest over largest    {share:.3f} of {count} questions"])


def main() -> int:
    """Ask, print, and return the exit code."""
    from sleep_rl.runs import run_dir
    from sleep_rl.runs.resolve import resolve_model

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--questions", metavar="FILE")
    arguments = parser.parse_args()
    model = resolve_model(arguments.run)
    if model.run is None:
        parser.error(f"expected the folder of a run, got {arguments.run}")
    config, task, _ = run_dir.read(model.run, (), ())
    questions_N = questions_of(task, arguments.questions)
    if not questions_N:
        parser.error("expected questions with answers, got none")
    longest = config.rollouts.engine.get("max_model_len")
    options = [f"max_model_len={longest}"] if longest else []
    with server(model.path, options) as url:
        texts = ask_server(url, questions_N, task.max_answer_tokens)
    recalls = {"/v1/chat/completions": recall(task, questions_N, texts)}
    evaluated = driver_recalls(config, task, model.path, questions_N)
    recalls |= {f"driver, {form} form": value for form, value in evaluated.items()}
    print(report(recalls, len(questions_N)))
    return 0 if alike(list(recalls.values())) >= ALIKE else 1


if __name__ == "__main__":
    sys.exit(main())
