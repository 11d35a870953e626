"""Knowledge incorporation in SEAL's protocol: passages of SQuAD, asked about without the passage.

n = 1: a dream about a passage is learned by an isolated copy, which answers that passage's
questions: the tau of dreaming.
Pooled: the model itself learns the dreams about a night's passages, and is asked about all of them
afterwards.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from sleep_rl.contracts.errors import Failure, InputError, one_line
from sleep_rl.contracts.records import Day, Document, DreamTask, Lesson, Question, TrainingText
from sleep_rl.files import parsed
from sleep_rl.tasks.grading import JudgeGrader, RecallGrader
from sleep_rl.tasks.small_base import Progress, train_base
from sleep_rl.tasks.squad.base_model import Recipe, base_batches, model_config, train_tokenizer

WHERE = "task.squad"
OPENER, MARKER = "\nQuestion:", "\nAnswer:"
DREAM = "\nImplications:"
NUMBERED = re.compile(r"^\s*(1[.)]|[-*•])\s")
# environment variable with the judge's API key: a secret stands in no config
KEY = "SLEEP_RL_JUDGE_KEY"


@dataclass(frozen=True)
class Passage:
    """`asked` holds (question, gold answer); `dreams` what others wrote about it, which only the
    small base reads.
    """

    title: str
    context: str
    asked: tuple[tuple[str, str], ...]
    dreams: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return f"{self.title}\n{self.context}"


def read_passages(path: str, where: str = f"{WHERE}.path") -> list[Passage]:
    """Passages of a json file in SEAL's form, a folder that `datasets` reads, or a hub dataset in
    SQuAD's form (its train split), each once, in order. Raises InputError with one line for
    anything that cannot be read.
    """
    try:
        rows = parsed(path) if os.path.exists(path) and not os.path.isdir(path) else _rows(path)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError("expected a list of passages, each an object")
        passages = _seal(rows) if rows and "questions" in rows[0] else _squad(rows)
        if not passages:
            raise ValueError("it holds no passage with a question")
    except Exception as error:
        # what the loaders raise has no common base class; all of it is about this input
        what = one_line(error)
        raise InputError(
            f"{where}: a json of passages, a datasets folder or a hub name, got {path}: {what}"
        ) from error
    return passages


def _rows(path: str) -> list[dict]:
    import datasets  # takes seconds to import and is needed for this kind of input only

    if not os.path.isdir(path) and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        raise FileNotFoundError("no such file")
    loaded = (
        datasets.load_from_disk(path)
        if os.path.isfile(Path(path) / "dataset_dict.json")
        else datasets.load_dataset(path)
    )
    return list(loaded["train"])


def _seal(rows: list[dict]) -> list[Passage]:
    out = []
    for i, row in enumerate(rows):
        where, asked, dreams = f"passage {i}", row.get("questions"), row.get("completions") or []
        if (
            not isinstance(asked, list)
            or not isinstance(dreams, list)
            or not all(isinstance(d, str) for d in dreams)
        ):
            raise ValueError(f"{where}: expected lists of questions and completions")
        out.append(
            Passage(
                _said(row, "title", where),
                _said(row, "context", where),
                tuple((_said(q, "question", where), _said(q, "answer", where)) for q in asked),
                tuple(dreams),
            )
        )
    return [p for p in out if p.context and p.asked]


def _said(row: Any, key: str, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(key), str):
        raise ValueError(
            f"{where}: {key}: expected text, got "
            f"{str(row.get(key) if isinstance(row, dict) else row)[:60]!r}"
        )
    return row[key].strip()


def _squad(rows: list[dict]) -> list[Passage]:
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for i, row in enumerate(rows):
        where, answers = f"row {i}", row.get("answers")
        texts = answers.get("text") if isinstance(answers, dict) else None
        if not isinstance(texts, list):
            raise ValueError(
                f"{where}: expected answers with a list text, got {str(answers)[:60]!r}"
            )
        if texts:
            about = _said(row, "title", where).replace("_", " "), _said(row, "context", where)
            found.setdefault(about, []).append(
                (_said(row, "question", where), _said({"answer": texts[0]}, "answer", where))
            )
    return [Passage(title, context, tuple(asked)) for (title, context), asked in found.items()]


class Squad:
    """The Task of this file (see contracts.Task and dream_contracts.Dreamer). Raises InputError on
    data or counts that cannot be served. `base_text`: passages that the small base is trained on;
    None takes those that no day brings.
    """

    name = "squad"
    opener, marker, dream_opener = OPENER, MARKER, DREAM
    max_new_tokens, max_answer_tokens = 64, 32

    def __init__(
        self,
        path: str,
        days: int = 2,
        passages_per_day: int = 10,
        order_seed: int = 42,
        max_dream_tokens: int = 192,
        grader: str = "recall",
        judge_endpoint: str | None = None,
        judge_model: str | None = None,
        base_text: str | None = None,
        recipe: Recipe | None = None,
    ):
        self.max_dream_tokens = max_dream_tokens
        passages = read_passages(path)
        random.Random(order_seed).shuffle(passages)  # SEAL's seed is 42
        if days * passages_per_day > len(passages):
            raise InputError(
                f"{WHERE}: days * passages_per_day is at most {len(passages)}, the "
                f"passages in {path}, got "
                f"{days * passages_per_day}"
            )
        if grader == "judge" and not (judge_endpoint and judge_model):
            raise InputError(
                f"{WHERE}.grader: judge needs {WHERE}.judge_endpoint and "
                f"judge_model, got {judge_endpoint} and "
                f"{judge_model}"
            )
        if judge_endpoint and not re.fullmatch(r"https?://\S+", judge_endpoint):
            raise InputError(
                f"{WHERE}.judge_endpoint: an address that begins with http:// or "
                f"https://, got {judge_endpoint!r}"
            )
        self.grader = (
            JudgeGrader(judge_endpoint, judge_model, os.environ.get(KEY, ""))
            if grader == "judge"
            else RecallGrader()
        )
        self._recipe = recipe or Recipe()
        self._of_day = {
            f"day{i + 1}": passages[i * passages_per_day : (i + 1) * passages_per_day]
            for i in range(days)
        }
        self._base = (
            read_passages(base_text, f"{WHERE}.base_text")
            if base_text
            else passages[days * passages_per_day :]
        )
        self._days = tuple(_day(name, mine) for name, mine in self._of_day.items())
        self._known = tuple(
            q for i, p in enumerate(self._base[:40]) for q in _questions(f"known/{i}", p, "")[:2]
        )

    def days(self) -> tuple[Day, ...]:
        return self._days

    def known(self) -> tuple[Question, ...]:
        """Questions about passages of the base's own text: what it may have learned by heart."""
        return self._known

    def grade(self, question: Question, text: str) -> float | Failure:
        """By the configured grader, on the answer's first line."""
        asked = question.prompt.split(OPENER, 1)[-1].removesuffix(MARKER).strip()
        lines = text.strip().split("\n")
        return self.grader.grade([(asked, question.answer, lines[0])])[0]

    def sft_texts(self, day: Day) -> tuple[TrainingText, ...]:
        return tuple(TrainingText("", p.text) for p in self._of_day[day.name])

    def joint_texts(self) -> tuple[TrainingText, ...]:
        asked = [*self._known, *(q for day in self._days for q in day.questions)]
        return tuple(TrainingText(q.prompt, f" {q.answer}") for q in asked)

    def dream_tasks(self, day: Day) -> tuple[DreamTask, ...]:
        """One task per passage: C is the passage; tau the mean grade of its questions."""
        return tuple(
            DreamTask(d.id, day.name, d, tuple(q for q in day.questions if q.document == d.id))
            for d in day.documents
        )

    def lesson(self, task: DreamTask, dream: str) -> Lesson | Failure:
        """SEAL's training texts: each line of the dream with the title in front, and the passage
        itself. A first line that only announces a list is dropped.
        """
        lines = [line.strip() for line in dream.split("\n") if line.strip()]
        if len(lines) > 1 and NUMBERED.match(lines[1]) and not NUMBERED.match(lines[0]):
            lines = lines[1:]
        if not lines:
            return Failure("it is empty", "dream")
        title = task.context.text.split("\n", 1)[0]
        return Lesson(
            (
                *(TrainingText("", f"{title}\n{line}") for line in dict.fromkeys(lines)),
                TrainingText("", task.context.text),
            )
        )

    def tau(self, task: DreamTask, answers: list[str]) -> float | Failure:
        """Mean grade; one that failed fails it, and nobody is asked about the rest."""
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
        """Trains a small base on the passages that no day brings; returns at once where the cache
        already has it.
        """
        if not self._base:
            raise InputError(
                f"{WHERE}.base_text: passages to train the base on, as the days bring all, got none"
            )
        made_of = repr([self._base, self._recipe, OPENER, MARKER, DREAM, seed])
        out = Path(cache) / f"squad-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
        if not out.is_dir():
            tokenizer = train_tokenizer([p.text for p in self._base], self._recipe.vocabulary)
            batches = base_batches(
                self._base, tokenizer, self._recipe, (OPENER, MARKER, DREAM), seed
            )
            train_base(
                out,
                tokenizer,
                model_config(self._recipe, tokenizer),
                batches,
                self._recipe.steps,
                self._recipe.lr,
                seed,
                progress,
            )
        return str(out)


def _day(name: str, passages: Sequence[Passage]) -> Day:
    documents = tuple(Document(f"{name}/{i}", p.text) for i, p in enumerate(passages))
    asked = tuple(
        q for d, p in zip(documents, passages, strict=True) for q in _questions(d.id, p, d.id)
    )
    return Day(name, documents, asked)


def _questions(prefix: str, passage: Passage, document: str) -> tuple[Question, ...]:
    """The title in front says what a question is about, as the passage does not."""
    return tuple(
        Question(
            f"{prefix}/{i}", f"Topic: {passage.title}{OPENER} {question}{MARKER}", answer, document
        )
        for i, (question, answer) in enumerate(passage.asked)
    )
