"""A life over the example folder's two days, without workers: a crew that answers from the document
in context, and closed book what the newest night taught.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from sleep_rl.contracts.records import STUDENT, TEACHER
from sleep_rl.tasks.documents import ingestion
from sleep_rl.tasks.documents.questions import questions
from sleep_rl.tasks.documents.sources import scan
from sleep_rl.tasks.documents.task import Documents
from sleep_rl.text.codec import PromptCodec
from tests.fakes.configs import toy
from tests.fakes.crew import MortalCrew, live_from_checkpoint, sampled_ids
from tests.fakes.tokenizers import chat_tokenizer

EXAMPLE = Path(__file__).parents[2] / "configs" / "example"
KIND = Path(__file__).with_name("sentence_end.yaml")
UNKNOWN = "Nobody knows."
ASKS = "How does this sentence go on: "
CONFIG = toy(
    model={"base": "somewhere", "experts": 4},
    sleep={"steps": 4, "steps_per_round": 1, "batch": 16},
    objective={"on_policy": 0.5},
    generation={"kinds": {str(KIND): 0.5}, "min_gain": -1.0, "other_form": 0.1},
    replay={"samples": 6},
    rehearsal={"samples": 500},
    evaluate={"contexts": []},
    baselines={"run": []},
    run={"checkpoint_steps": 2},
)


class LivingCrew(MortalCrew):
    """A crew that keeps the rows it is trained on: (number of nights before, row)."""

    def __init__(self, texts, at=None):
        super().__init__(texts, at)
        self.rows = []
        self.requests = []  # (number of nights before, state, request)

    @property
    def nights(self):
        return sum(entry[0] == "close" for entry in self.protocol)

    def check_batch(self, batch_N, step, steps):
        self._train("seed", batch_N, step)
        self.rows += [(self.nights, row) for row in batch_N]

    def check_requests(self, requests_N, name, sampling):
        super().check_requests(requests_N, name, sampling)
        self.requests += [(self.nights, name, request) for request in requests_N]

    def answer(self, request, name):
        text = self.texts.tokens.text(request.context_T + request.prompt_T, special=True)
        ids_T = self.texts.tokens.plain_ids(self.reply(text, name, request.seed)) + self.texts.eos
        return sampled_ids(request, name, ids_T)

    def reply(self, text, name, seed):
        turn = text.rsplit("<|im_start|>user\n", 1)[-1]
        if not turn:
            return f"How was day {seed % 1000}?"
        sentence = re.search(r"\nSentence: (.*?)\.?<\|im_end\|>", turn)
        if sentence:
            words = sentence[1].split()
            return f"{ASKS}{' '.join(words[: -max(len(words) // 4, 1)])}?"
        document, _, question = turn.rpartition("Question:\n")
        question = question.split("<|im_end|>")[0].split("\nAnswer:")[0].strip()
        if document:
            beginning = question.removeprefix(ASKS).rstrip("?")
            lines = [line for line in document.split("\n") if line.startswith(beginning)]
            return lines[0].removeprefix(beginning).strip() if lines else UNKNOWN
        taught = (
            answers_of(min(self.nights, 2)) if name in (TEACHER, STUDENT) and self.nights else {}
        )
        return taught.get(question) or UNKNOWN


def answers_of(day):
    """Return question -> answer of the example's day."""
    lines = (EXAMPLE / f"day{day}" / "questions.jsonl").read_text().splitlines()
    return {row["question"]: row["answer"] for row in map(json.loads, lines)}


def ingest(days, folder):
    """Return the days with one more, on which `folder` is what the user has."""
    scanned = scan(str(folder), "path")
    asked = questions(None, str(folder), "questions")
    return ingestion.next_day(
        days,
        scanned.sources,
        asked,
        400,
        lambda text: len(text.split()),
        left_out=scanned.left_out,
        deleted=ingestion.missing(days, scanned),
    )


def live_days(folder, days, at=None, config=CONFIG):
    """Run one process of the life of these ingested days in `folder`, from its newest checkpoint,
    that is killed at call number `at`; return (crew, run).
    """
    folder.mkdir(exist_ok=True)
    ingestion.write(folder, days)
    task = Documents("", record=str(folder), days=len(days))
    codec = PromptCodec(task, chat_tokenizer(), "chat")
    crew = LivingCrew(codec, at)
    return crew, live_from_checkpoint(crew, codec, config, folder)
