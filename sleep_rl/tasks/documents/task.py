"""A person's own documents: every run takes in what is new, and sleeps over it
(sleep_rl/tasks/documents/sources.py, intake.py).

Without `model.base` the demo's small model reads them. It knows the words and sentences of its
world only, and says so.
"""

from __future__ import annotations

import re

from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.records import Day, Document, Question, TrainingText
from sleep_rl.tasks.documents import ingestion
from sleep_rl.tasks.documents.sources import questions as read_questions
from sleep_rl.tasks.documents.sources import scan
from sleep_rl.tasks.grading import RecallGrader
from sleep_rl.tasks.small_base import Progress
from sleep_rl.tasks.world import people
from sleep_rl.tasks.world.task import World
from sleep_rl.tasks.world.vocabulary import vocabulary

WHERE = "task.documents"
OPENER = "\nQuestion:"
MARKER = "\nAnswer:"
WORD = re.compile(r"\w+|[^\w\s]")
SMALL = 34  # tokens of the longest documents that the small model learned to read
UNKNOWN = 0.1  # share of a document's words that the small model may not know


class Documents:
    """Implements `Task`. Raises InputError on documents or questions that cannot be used.

    `record`: the folder of a run, whose days are those that it has ingested, or the first `days` of
    them. Without it everything at `path` is one day, in pieces of at most `piece_tokens` words.
    `small`: the world whose base model reads, instead of `model.base`.
    """

    name = "documents"

    def __init__(
        self,
        path: str,
        questions: str | None = None,
        known: str | None = None,
        piece_tokens: int = 512,
        max_new_tokens: int = 96,
        max_answer_tokens: int = 48,
        days: int | None = None,
        record: str | None = None,
        small: World | None = None,
    ):
        self.small = small
        self.piece_tokens = min(piece_tokens, SMALL) if small else piece_tokens
        self.max_new_tokens = small.max_new_tokens if small else max_new_tokens
        self.max_answer_tokens = small.max_answer_tokens if small else max_answer_tokens
        self.opener, self.marker = (people.OPENER, people.MARKER) if small else (OPENER, MARKER)
        if record:
            taken = ingestion.read(record)
            if len(taken) < (days or 1):
                raise InputError(
                    f"{record}: expected the record of {days or 1} days that were taken in, got "
                    f"{len(taken)}"
                )
        else:
            asked = read_questions(questions, path, f"{WHERE}.questions")
            taken = ingestion.next_day(
                (),
                scan(path, f"{WHERE}.path").sources,
                asked,
                self.piece_tokens,
                lambda text: len(WORD.findall(text)),
            )
        self._days = tuple(self._day(f"day{n}", day) for n, day in enumerate(taken[:days], start=1))
        asked = read_questions(known, "", f"{WHERE}.known") if known else ()
        self._known = tuple(
            Question(
                f"known/{i}", self.prompt(q.question), self._checked_text(q.answer, "an answer")
            )
            for i, q in enumerate(asked, start=1)
        )
        self._grader = RecallGrader()

    def _day(self, name: str, day: ingestion.Intake) -> Day:
        documents = []
        first = {}
        for taken in day.documents:
            first[taken.name] = f"{name}/{taken.name}"
            for k, piece in enumerate(taken.pieces):
                documents.append(
                    Document(
                        f"{name}/{taken.name}" + f"/{k + 1}" * (k > 0),
                        self._checked_text(piece, taken.name),
                    )
                )
        asked = tuple(
            Question(
                f"{name}/{i}",
                self.prompt(q.question),
                self._checked_text(q.answer, "an answer"),
                first.get(q.document, ""),
            )
            for i, q in enumerate(day.questions, start=1)
        )
        return Day(name, tuple(documents), asked)

    def prompt(self, question: str) -> str:
        """Return a question as the prompt that the model continues with an answer."""
        text = self._checked_text(question, "a question")
        space = " " if self.small else ""
        return f"{self.opener} {text}{space}{self.marker}"

    def read_as(self, text: str) -> str:
        """The text as the model reads it: for the small one, its words in lower case with spaces
        between.
        """
        return " ".join(WORD.findall(text.lower())) if self.small else text

    def _checked_text(self, text: str, where: str) -> str:
        """`read_as`. Raises InputError where the small model knows too few of the words."""
        said = self.read_as(text)
        if self.small:
            words = said.split()
            known = set(vocabulary())
            unknown = list(dict.fromkeys(w for w in words if w not in known))
            if len(unknown) > UNKNOWN * len(words):
                raise InputError(
                    f"{WHERE}.path: the small model of the demo knows the "
                    f"{len(known)} words of its world only, got "
                    f"{', '.join(unknown[:5])} in {where}; name a language model by "
                    "model.base"
                )
        return said

    def days(self) -> tuple[Day, ...]:
        return self._days

    def known(self) -> tuple[Question, ...]:
        """What the small model knew before; of another base what the user says that it knew."""
        return self._known or (self.small.known() if self.small else ())

    def grade(self, question: Question, text: str) -> float:
        """1 where the first line holds at least 0.67 of the answer's words, else 0."""
        lines = text.strip().split("\n")
        return self._grader.grade([("", question.answer, lines[0])])[0]

    def sft_texts(self, day: Day) -> tuple[TrainingText, ...]:
        return tuple(TrainingText("", d.text) for d in day.documents)

    def joint_texts(self) -> tuple[TrainingText, ...]:
        asked = [*self.known(), *(q for day in self._days for q in day.questions)]
        return tuple(TrainingText(q.prompt, f" {q.answer}") for q in asked)

    def base_checkpoint(self, cache: str, seed: int, progress: Progress | None) -> str:
        """The demo's small model; see tasks/world.py."""
        if not self.small:
            raise InputError("model.base: a language model is needed, got null")
        return self.small.base_checkpoint(cache, seed, progress)
