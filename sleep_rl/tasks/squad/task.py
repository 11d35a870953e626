"""Task squad: knowledge incorporation in SEAL's protocol, questions on SQuAD without the passage.

n = 1: an isolated copy is trained on a dream about a passage and answers the questions of that
passage, which gives tau. Pooled: the model itself is trained on the dreams of a night, and
evaluated on all their passages.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Sequence
from statistics import fmean

from sleep_rl.config.tasks import SquadConfig
from sleep_rl.contracts.errors import Failure, InputError
from sleep_rl.contracts.records import Day, Document, DreamTask, Lesson, Question, TrainingText
from sleep_rl.tasks.grading import JudgeGrader, RecallGrader
from sleep_rl.tasks.small_base import Progress, cache_folder, train_base
from sleep_rl.tasks.squad.base_model import Recipe, base_batches, model_config, train_tokenizer
from sleep_rl.tasks.squad.dataset import DREAM, MARKER, OPENER, Passage, read_passages

WHERE = "task.squad"
LIST_ITEM = re.compile(r"^\s*(1[.)]|[-*•])\s")
# environment variable with the judge's API key; secrets do not belong into a config
KEY = "SLEEP_RL_JUDGE_KEY"
KNOWN_PASSAGES = 40
KNOWN_QUESTIONS_PER_PASSAGE = 2


class Squad:
    """Implements `Task` and `Dreamer`. Raises InputError on unreadable data or impossible counts.

    `order_seed`: of the order of passages; SEAL's is 42. `base_text`: passages that the small base
    is trained on; None: those of `path` that no day contains.
    """

    name = "squad"
    opener = OPENER
    marker = MARKER
    dream_opener = DREAM
    max_new_tokens = 64
    max_answer_tokens = 32

    def __init__(
        self,
        path: str,
        days: int = SquadConfig.days,
        passages_per_day: int = 10,
        order_seed: int = 42,
        max_dream_tokens: int = SquadConfig.dream_tokens,
        judge_endpoint: str | None = None,
        judge_model: str | None = None,
        base_text: str | None = None,
        recipe: Recipe | None = None,
    ):
        self.max_dream_tokens = max_dream_tokens
        self.grader = _grader(judge_endpoint, judge_model)
        self._recipe = recipe or Recipe()
        passages = read_passages(path)
        random.Random(order_seed).shuffle(passages)
        count = days * passages_per_day
        if count > len(passages):
            raise InputError(
                f"task.days * {WHERE}.passages_per_day is at most {len(passages)}, the passages in "
                f"{path}, got {count}"
            )
        self._passages = {
            f"day{i + 1}": passages[i * passages_per_day : (i + 1) * passages_per_day]
            for i in range(days)
        }
        self._base = passages[count:]
        if base_text:
            self._base = read_passages(base_text, "task.base_text")
        self._days = tuple(_day(name, passages) for name, passages in self._passages.items())
        known: list[Question] = []
        for i, passage in enumerate(self._base[:KNOWN_PASSAGES]):
            known += _questions(f"known/{i}", passage, "")[:KNOWN_QUESTIONS_PER_PASSAGE]
        self._known = tuple(known)

    def days(self) -> tuple[Day, ...]:
        return self._days

    def known(self) -> tuple[Question, ...]:
        """Return questions about passages that the small base was trained on."""
        return self._known

    def grade(self, question: Question, text: str) -> float | Failure:
        """Grade the first line of the text with the configured grader."""
        question_text = question.prompt.split(OPENER, 1)[-1].removesuffix(MARKER).strip()
        first_line = text.strip().split("\n")[0]
        return self.grader.grade([(question_text, question.answer, first_line)])[0]

    def sft_texts(self, day: Day) -> tuple[TrainingText, ...]:
        return tuple(TrainingText("", passage.text) for passage in self._passages[day.name])

    def joint_texts(self) -> tuple[TrainingText, ...]:
        questions = [*self._known, *(q for day in self._days for q in day.questions)]
        return tuple(TrainingText(q.prompt, f" {q.answer}") for q in questions)

    def dream_tasks(self, day: Day) -> tuple[DreamTask, ...]:
        """Return one task per passage: C is the passage, tau the mean grade of its questions."""
        return tuple(
            DreamTask(d.id, day.name, d, tuple(q for q in day.questions if q.document == d.id))
            for d in day.documents
        )

    def lesson(self, task: DreamTask, dream: str) -> Lesson | Failure:
        """Return SEAL's training texts: the title with each line of the dream, and the passage.

        A first line that only announces a list is dropped.
        """
        lines = [line.strip() for line in dream.split("\n") if line.strip()]
        if len(lines) > 1 and LIST_ITEM.match(lines[1]) and not LIST_ITEM.match(lines[0]):
            lines = lines[1:]
        if not lines:
            return Failure("empty text", "dream")
        title = task.context.text.split("\n", 1)[0]
        texts = [TrainingText("", f"{title}\n{line}") for line in dict.fromkeys(lines)]
        return Lesson((*texts, TrainingText("", task.context.text)))

    def tau(self, task: DreamTask, answers: list[str]) -> float | Failure:
        """Return the mean grade, or the first Failure; later answers are then not graded."""
        grades: list[float] = []
        for question, text in zip(task.questions, answers, strict=True):
            grade = self.grade(question, text)
            if isinstance(grade, Failure):
                return grade
            grades.append(grade)
        return fmean(grades)

    def deeper(self, day: Day) -> dict[str, tuple[Question, ...]]:
        return {}

    def base_checkpoint(self, cache: str, seed: int, progress: Progress | None) -> str:
        """Return the base's folder in `cache`; train it first if it is not there."""
        if not self._base:
            raise InputError(
                "task.base_text: passages to train the base on, as the days bring all, got none"
            )
        recipe = self._recipe
        out = cache_folder(cache, "squad", repr([self._base, recipe, OPENER, MARKER, DREAM, seed]))
        if not out.is_dir():
            tokenizer = train_tokenizer([p.text for p in self._base], recipe.vocabulary)
            train_base(
                out,
                tokenizer,
                model_config(recipe, tokenizer),
                base_batches(self._base, tokenizer, recipe, seed),
                recipe.steps,
                recipe.lr,
                seed,
                progress,
            )
        return str(out)


def _grader(endpoint: str | None, model: str | None) -> JudgeGrader | RecallGrader:
    """Return the judge at an endpoint, or without one the grader by recall. Raises InputError for
    an endpoint that is no address, and for one of both without the other.
    """
    if bool(endpoint) != bool(model):
        raise InputError(
            f"{WHERE}.judge_model: with {WHERE}.judge_endpoint, and only with it, got "
            f"{model or 'null'} with {endpoint or 'null'}"
        )
    if not endpoint:
        return RecallGrader()
    if not re.fullmatch(r"https?://\S+", endpoint):
        raise InputError(
            f"{WHERE}.judge_endpoint: an address that begins with http:// or https://, "
            f"got {endpoint!r}"
        )
    return JudgeGrader(endpoint, model, os.environ.get(KEY, ""))


def _day(name: str, passages: Sequence[Passage]) -> Day:
    documents = [Document(f"{name}/{i}", p.text) for i, p in enumerate(passages)]
    questions: list[Question] = []
    for document, passage in zip(documents, passages, strict=True):
        questions += _questions(document.id, passage, document.id)
    return Day(name, tuple(documents), tuple(questions))


def _questions(prefix: str, passage: Passage, document: str) -> list[Question]:
    """Return the questions about a passage, each after the passage's title as its topic."""
    return [
        Question(
            f"{prefix}/{i}", f"Topic: {passage.title}{OPENER} {question}{MARKER}", answer, document
        )
        for i, (question, answer) in enumerate(passage.asked)
    ]
