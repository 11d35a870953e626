"""Task `documents`: the user's own documents; each run ingests what is new, as the next day.

`sources` reads the documents, `ingestion` keeps the record of days. Without `model.base` the small
model of the demo reads them, which knows the vocabulary of task `world` only; other documents are
refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace

from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.records import Day, Document, Question, Superseded, TrainingText
from sleep_rl.tasks.documents import ingestion
from sleep_rl.tasks.documents.questions import questions as read_questions
from sleep_rl.tasks.documents.sources import DocumentQuestion, lookup, scan, words
from sleep_rl.tasks.grading import RecallGrader
from sleep_rl.tasks.small_base import Progress
from sleep_rl.tasks.world import people
from sleep_rl.tasks.world.task import World
from sleep_rl.tasks.world.vocabulary import vocabulary

WHERE = "task.documents"
WORD = re.compile(r"\w+|[^\w\s]")
SMALL_PIECE_TOKENS = 34  # longest document that the small model was trained on
MAX_UNKNOWN = 0.1  # largest share of words outside the small model's vocabulary


class Documents:
    """Implements `Task`. Raises InputError on documents or questions that cannot be used.

    `path`, `questions` and `known` are those of section task.documents. `record`: folder of a run,
    whose ingested days (the first `days` of them, if given) are the task's; None: everything at
    `path` is one day, in pieces of at most `piece_tokens` words. `small`: the task `world` whose
    small base model is used; None: that of `model.base`.
    """

    name = "documents"

    def __init__(
        self,
        path: str,
        questions: str | None = None,
        known: str | None = None,
        piece_tokens: int = 512,
        max_new_tokens: int = 96,
        days: int | None = None,
        record: str | None = None,
        small: World | None = None,
    ):
        self.small = small
        self.piece_tokens = min(piece_tokens, SMALL_PIECE_TOKENS) if small else piece_tokens
        self.max_new_tokens = small.max_new_tokens if small else max_new_tokens
        self.max_answer_tokens = small.max_answer_tokens if small else max_new_tokens // 2
        self.opener, self.marker = (people.OPENER, people.MARKER) if small else ("", "")
        if record:
            ingested = ingestion.read(record)
            if len(ingested) < (days or 1):
                raise InputError(
                    f"{record}: expected the record of {days or 1} ingested days, got "
                    f"{len(ingested)}"
                )
        else:
            scanned = scan(path, f"{WHERE}.path")
            ingested = ingestion.next_day(
                (),
                scanned.sources,
                read_questions(questions, path, f"{WHERE}.questions"),
                self.piece_tokens,
                lambda text: len(WORD.findall(text)),
                left_out=scanned.left_out,
            )
        self._ingested = ingested[:days]
        self._days = tuple(map(self._day, range(1, len(self._ingested) + 1)))
        known_questions = read_questions(known, "", f"{WHERE}.known") if known else ()
        self._known = tuple(self._question("known", q) for q in known_questions)
        self._grader = RecallGrader()

    def _day(self, number: int) -> Day:
        day = self._ingested[number - 1]
        name = f"day{number}"
        documents = []
        first_piece = lookup((d.name, f"{name}/{d.name}") for d in day.documents)
        for ingested in day.documents:
            for k, piece in enumerate(ingested.pieces):
                document_id = piece_id(f"{name}/{ingested.name}", k)
                text = self._checked_text(piece, ingested.name)
                if not self.small:
                    documents.append(with_header(document_id, ingested, k, text))
                else:
                    documents.append(Document(document_id, text))
        questions = tuple(
            self._question(name, q, first_piece(q.document) or "") for q in day.questions
        )
        return Day(name, tuple(documents), questions, superseded(self._ingested[:number]))

    def _question(self, column: str, asked: DocumentQuestion, document: str = "") -> Question:
        """Return a question of a day or of the known; `document`: id of the one that answers it.

        Its id does not depend on what is asked beside it, since the user's file may grow.
        """
        said = words(f"{asked.question} {asked.answer} {asked.document}")
        digest = hashlib.blake2b(said.encode(), digest_size=4).hexdigest()
        return Question(
            f"{column}/{digest}",
            self.prompt(asked.question),
            self._checked_text(asked.answer, "an answer"),
            document,
            asked.kind,
            tuple(self._checked_text(choice, "an answer") for choice in asked.choices),
            self._checked_text(asked.old_answer, "an answer"),
        )

    def prompt(self, question: str) -> str:
        """Return the prompt of a question: between opener and marker for the small model, in whose
        form it knows questions; as it is for a language model, whose form the codec chooses.
        """
        text = self._checked_text(question, "a question")
        return f"{self.opener} {text} {self.marker}" if self.small else text

    def read_as(self, text: str) -> str:
        """Return the text as the model reads it: lower-case words joined by spaces for the small
        model, unchanged for any other.
        """
        return " ".join(WORD.findall(text.lower())) if self.small else text

    def _checked_text(self, text: str, where: str) -> str:
        """Return `read_as(text)`. Raises InputError if too many words are unknown to the small
        model.
        """
        model_text = self.read_as(text)
        if self.small:
            words = model_text.split()
            known = set(vocabulary())
            unknown = list(dict.fromkeys(w for w in words if w not in known))
            if len(unknown) > MAX_UNKNOWN * len(words):
                raise InputError(
                    f"{WHERE}.path: the small model of the demo knows the "
                    f"{len(known)} words of its world only, got "
                    f"{', '.join(unknown[:5])} in {where}; name a language model by "
                    "model.base"
                )
        return model_text

    def days(self) -> tuple[Day, ...]:
        return self._days

    def known(self) -> tuple[Question, ...]:
        """Return the questions of task.documents.known; without them those of the small model."""
        return self._known or (self.small.known() if self.small else ())

    def current(self, days: Sequence[Day], *, whole: bool = False) -> tuple[Document, ...]:
        """Return the pieces of the newest version of every document that was not deleted, newest
        day first; with `whole` as `whole` returns them.
        """
        found = ingestion.current(self._ingested[: len(days)]).values()
        newest_first = sorted(found, key=lambda version: -version[0])
        pieces_of = self.whole if whole else self._pieces
        return tuple(
            piece
            for number, document in newest_first
            for piece in pieces_of(f"day{number}/{document.name}")
        )

    def whole(self, document: str) -> tuple[Document, ...]:
        """Return the document whose first piece has this id: its pieces, of which only the first
        has a header, so that joined they are the text that was given.
        """
        pieces = self._pieces(document)
        if self.small or len(pieces) == 1:
            return pieces
        title = pieces[0].title
        bodies = [piece.text.split("\n\n", 1)[-1] for piece in pieces]
        bodies[0] = f"{title}\n\n{bodies[0]}"
        return tuple(replace(piece, text=body) for piece, body in zip(pieces, bodies, strict=True))

    def _pieces(self, document: str) -> tuple[Document, ...]:
        """Return the pieces of the document whose first piece has this id."""
        pieces = {d.id: d for day in self._days for d in day.documents}
        count = next(
            len(d.pieces)
            for n, day in enumerate(self._ingested, start=1)
            for d in day.documents
            if f"day{n}/{d.name}" == document
        )
        return tuple(pieces[piece_id(document, k)] for k in range(count))

    def grade(self, question: Question, text: str) -> float:
        """Return 1 if the first line has at least 0.67 of the answer's tokens, else 0."""
        lines = text.strip().split("\n")
        return self._grader.grade([("", question.answer, lines[0])])[0]

    def sft_texts(self, day: Day) -> tuple[TrainingText, ...]:
        return tuple(TrainingText("", d.text) for d in day.documents)

    def joint_texts(self) -> tuple[TrainingText, ...]:
        questions = [*self.known(), *(q for day in self._days for q in day.questions)]
        return tuple(TrainingText(q.prompt, f" {q.answer}") for q in questions if q.answer)

    def base_checkpoint(self, cache: str, seed: int, progress: Progress | None) -> str:
        """Return the path of the small model of task `world`. Raises InputError where model.base is
        needed.
        """
        if not self.small:
            raise InputError("model.base: a language model is needed, got null")
        return self.small.base_checkpoint(cache, seed, progress)


def piece_id(document: str, number: int) -> str:
    """Return the id of a piece of a document; that of piece number 0 is the document's."""
    return document if number == 0 else f"{document}/{number + 1}"


def superseded(days: Sequence[ingestion.IngestedDay]) -> tuple[Superseded, ...]:
    """Return the documents of earlier days that the last of `days` changes or deletes."""
    *earlier, day = days
    versions = ingestion.current(earlier)
    before = lookup((name, name) for name in versions)
    replaced = [(document.name, document) for document in day.documents]
    replaced += [(name, None) for name in (*day.deleted, *day.forgotten)]
    out = []
    for name, document in replaced:
        known = before(name)
        if known is not None:
            new = _piece_ids(len(days), document) if document else ()
            out.append(Superseded(known, _piece_ids(*versions[known]), new))
    return tuple(out)


def _piece_ids(day: int, document: ingestion.IngestedDocument) -> tuple[str, ...]:
    name = f"day{day}/{document.name}"
    return tuple(piece_id(name, k) for k in range(len(document.pieces)))


def title_of(ingested: ingestion.IngestedDocument) -> str:
    """Return a document's title: its first heading, or its file name in words."""
    for line in ingested.pieces[0].split("\n"):
        if line.startswith("#"):
            return line.strip("# \t")
    stem = ingested.name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return re.sub(r"[_\s-]+", " ", stem).strip() or ingested.name


def with_header(
    document_id: str, ingested: ingestion.IngestedDocument, number: int, text: str
) -> Document:
    """Return a piece of a document after a header with its title and number.

    `number`: of the piece, from 0. Without a header questions about a piece would name nothing.
    """
    title = title_of(ingested)
    header = title
    if len(ingested.pieces) > 1:
        header += f", part {number + 1} of {len(ingested.pieces)}"
    first, _, rest = text.partition("\n")
    body = rest if first.strip("# \t") == title else text
    return Document(document_id, f"{header}\n\n{body.strip()}".strip(), title)
