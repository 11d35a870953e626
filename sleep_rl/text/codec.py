"""Encode a task's texts as token ids: contexts, questions, sequences, training texts."""

from __future__ import annotations

from typing import Any

from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.records import Document, Ids, Question, TrainingText
from sleep_rl.contracts.roles import Task
from sleep_rl.text.answer_style import SENTENCE, AnswerStyle
from sleep_rl.text.forms import bos_of, choose_form, eos_of, other_form
from sleep_rl.text.tokens import TextTokenizer

TOKEN = "token"
STRING = "string"
CUT = "cut"
ENDS = (TOKEN, STRING, CUT)
"""How an answer ended: with an end token, in front of a stop string, or cut from a text that runs
on, behind its last complete sentence or line.
"""


class PromptCodec:
    """Encodes and decodes a task's texts, in the form that model.format names.

    `ends`: further tokens that end a completion, from the checkpoint's generation_config; `stop`:
    task.stop, strings that do so in natural language; `style`: generation.answers. Raises
    InputError for an unsuitable tokenizer, see sleep_rl.text.forms.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: Any,
        format: str = "auto",
        ends: Ids = (),
        stop: tuple[str, ...] = (),
        style: AnswerStyle = SENTENCE,
    ):
        self.task = task
        self.tokenizer = tokenizer
        self.tokens = TextTokenizer(tokenizer)
        self.style = style
        self.form = choose_form(format, task.opener, task.marker, self.tokens)
        self.other = other_form(self.form, self.tokens) if self.natural else None
        self.bos: Ids = bos_of(tokenizer)
        self.eos: Ids = (self.form.end,)
        self.opener = self.form.opener
        self.marker = self.form.marker
        self.ends: Ids = self.eos
        self.stop: tuple[str, ...] = ()
        if self.natural:
            self.stop = stop
            self.ends = tuple(dict.fromkeys((*self.eos, eos_of(tokenizer), *ends)))

    @property
    def natural(self) -> bool:
        """Whether the task's texts are natural language, so that model.format chooses the form."""
        return self.form.name != "task"

    def ids(self, text: str) -> Ids:
        """Tokenize a part of the task's text, without special tokens."""
        return self.tokens.plain_ids(text)

    def text(self, ids: Ids) -> str:
        """Decode token ids, without special tokens."""
        return self.tokens.text(ids)

    def context(self, document: Document | None, style: AnswerStyle = SENTENCE) -> Ids:
        """Return the ids before opener and prompt: with the document, if there is one.

        `style`: of answers about the document, in natural language.
        """
        return self.form.context(document, style) if self.natural else self.form.context(document)

    @property
    def bare(self) -> Ids:
        """Ids that the student reads before a prompt: the context without a document, and the
        opener.
        """
        return self.context(None) + self.opener

    def document(self, document: Document) -> Ids:
        """Return the ids of a document for a wake update: bos, text, eos."""
        return self.bos + self.ids(document.text) + (eos_of(self.tokenizer),)

    def question(self, question: Question) -> Ids:
        """Return the ids of an evaluation question's prompt, which follows `context`."""
        return self.form.question(question.prompt)

    def split(self, sequence_T: Ids) -> tuple[Ids, Ids] | None:
        """Split a sequence into (x with marker, y).

        Returns None if it has no marker, or no token but eos after the marker.
        """
        end = self.x_length(sequence_T)
        if end is None or end == len(sequence_T):
            return None
        answer_T = sequence_T[end:]
        return None if answer_T == self.eos else (sequence_T[:end], answer_T)

    def x_length(self, sequence_T: Ids) -> int | None:
        """Return the number of tokens up to the end of the first marker; None without a marker."""
        return self.form.x_length(sequence_T)

    def asked(self, x_T: Ids) -> str:
        """Return the question of a prompt x, without its marker."""
        marker = self.tokens.text(self.marker, special=True)
        return self.tokens.text(x_T, special=True).removesuffix(marker).strip()

    def complete(self, completion_T: Ids) -> tuple[Ids, str] | None:
        """Return (answer without its end, how it ended) of a sampled answer in natural language.

        How is one of the ENDS; None if there is no complete answer.
        """
        ended = bool(completion_T) and completion_T[-1] in self.ends
        body = completion_T[:-1] if ended else completion_T
        text = self.tokens.text(body, special=True)
        end = self.form.answer_end(text)
        at = self._stop_at(text)
        if at is not None and (end is None or at <= end or self.form.name == "chat"):
            kept = body[: self.tokens.token_at(body, len(text[:at].rstrip()))]
            return (kept, STRING) if text[:at].strip() else None
        if ended and (end is None or self.form.name == "chat"):
            return (body, TOKEN) if text.strip() else None
        if end is None:
            return None
        kept = body[: self.tokens.token_at(body, len(text[:end].rstrip()))]
        return (kept, CUT) if text[:end].strip() else None

    def answer_text(self, completion_T: Ids) -> str:
        """Decode a sampled answer, without special tokens, up to the first string of `stop`."""
        text = self.text(completion_T)
        return text[: self._stop_at(text)]

    def _stop_at(self, text: str) -> int | None:
        """Return the position of the first stop string in a text; None: there is none."""
        return min((at for at in map(text.find, self.stop) if at >= 0), default=None)

    def baseline(self, text: TrainingText) -> tuple[Ids, Ids]:
        """Return (prompt_T, completion_T) of a training text; the completion ends with eos.

        If there is neither bos nor prompt, the first token of the completion becomes the prompt.
        """
        if text.prompt and self.natural:
            prompt = self.bare + self.form.question(text.prompt)
            return prompt, self.form.answer(text.completion) + self.eos
        prompt = self.bos + self.ids(text.prompt)
        end = self.eos if text.prompt else (eos_of(self.tokenizer),)
        completion = self.ids(text.completion) + end
        return (prompt, completion) if prompt else (completion[:1], completion[1:])

    def check_fits(self, documents: list[Document], limit: int) -> None:
        """Raise InputError for the first document that is empty or, with a generated sequence,
        longer than `limit`, the engine's max_model_len.
        """
        room = self.room(limit)
        for document in documents:
            length = len(self.ids(document.text))
            if length == 0:
                raise InputError(f"document {document.id}: at least one token, got an empty text")
            if length > room:
                raise InputError(
                    f"document {document.id}: at most {room} tokens fit into "
                    f"rollouts.engine.max_model_len = {limit}, got {length}"
                )

    def room(self, limit: int) -> int:
        """Return the largest number of tokens of a document for max_model_len `limit`."""
        document = Document("", ".")
        around = len(self.bare)
        if self.natural:
            around = max(len(self.context(document, style)) for style in (SENTENCE, self.style))
        return limit - around - self.task.max_new_tokens
