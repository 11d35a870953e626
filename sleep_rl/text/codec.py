"""A task's texts in token ids: contexts, questions, written sequences, training texts."""

from __future__ import annotations

from typing import Any

from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.records import Document, Ids, Question, TrainingText
from sleep_rl.contracts.roles import Task
from sleep_rl.text.forms import bos_of, choose_form, eos_of, other_form
from sleep_rl.text.tokens import TextTokenizer


class PromptCodec:
    """A task's texts in a tokenizer's ids, in the form that model.format names.

    `ends`: further tokens at which the checkpoint's generation_config ends a completion. Raises
    InputError for a tokenizer that cannot serve, see sleep_rl.text.forms.
    """

    def __init__(self, task: Task, tokenizer: Any, format: str = "auto", ends: Ids = ()):
        self.task = task
        self.tokenizer = tokenizer
        self.tokens = TextTokenizer(tokenizer)
        self.form = choose_form(format, task.opener, task.marker, self.tokens)
        self.other = other_form(self.form, self.tokens) if self.natural else None
        self.bos: Ids = bos_of(tokenizer)
        self.eos: Ids = (self.form.end,)
        self.opener = self.form.opener
        self.marker = self.form.marker
        self.ends: Ids = self.eos
        if self.natural:
            self.ends = tuple(dict.fromkeys((*self.eos, eos_of(tokenizer), *ends)))

    @property
    def natural(self) -> bool:
        """Whether the task's texts are natural language, and its form the model's choice."""
        return self.form.name != "task"

    def ids(self, text: str) -> Ids:
        """Tokenize a piece of the task's text, without special tokens."""
        return self.tokens.plain_ids(text)

    def text(self, ids: Ids) -> str:
        """Decode, without special tokens."""
        return self.tokens.text(ids)

    def context(self, document: Document | None) -> Ids:
        """Return what is in front of opener and prompt, and the document if there is one."""
        return self.form.context(document)

    @property
    def bare(self) -> Ids:
        """What the student reads in front of a prompt: all but the document."""
        return self.context(None) + self.opener

    def document(self, document: Document) -> Ids:
        """Return a document as the model reads it while awake: bos, text, eos."""
        return self.bos + self.ids(document.text) + (eos_of(self.tokenizer),)

    def question(self, question: Question) -> Ids:
        """Return the prompt of an evaluation question, which stands behind `context`."""
        return self.form.question(question.prompt)

    def split(self, sequence_T: Ids) -> tuple[Ids, Ids] | None:
        """Return a written sequence as (x with marker, y); None when it has no marker, or nothing
        but eos after it.
        """
        end = self.x_length(sequence_T)
        if end is None or end == len(sequence_T):
            return None
        answer_T = sequence_T[end:]
        return None if answer_T == self.eos else (sequence_T[:end], answer_T)

    def x_length(self, sequence_T: Ids) -> int | None:
        """Return the number of tokens up to and with the first marker, None if there is none."""
        return self.form.x_length(sequence_T)

    def complete(self, completion_T: Ids) -> tuple[Ids, str] | None:
        """Return (answer without its end, how it ended) of a sampled answer in natural language.

        It ended by itself ("stop"), or a complete answer is cut out of a text that runs on ("cut");
        None where there is none.
        """
        ended = bool(completion_T) and completion_T[-1] in self.ends
        body = completion_T[:-1] if ended else completion_T
        text = self.tokens.text(body, special=True)
        end = self.form.answer_end(text)
        if ended and (end is None or self.form.name == "chat"):
            return (body, "stop") if text.strip() else None
        if end is None:
            return None
        kept = body[: self.tokens.token_at(body, len(text[:end].rstrip()))]
        return (kept, "cut") if text[:end].strip() else None

    def baseline(self, text: TrainingText) -> tuple[Ids, Ids]:
        """Return (prompt_T, completion_T) of a training text; the completion ends with eos.

        Without bos and prompt the first token of the completion becomes the prompt.
        """
        if text.prompt and self.natural:
            prompt = self.bare + self.form.question(text.prompt)
            return prompt, self.form.answer(text.completion) + self.eos
        prompt = self.bos + self.ids(text.prompt)
        end = self.eos if text.prompt else (eos_of(self.tokenizer),)
        completion = self.ids(text.completion) + end
        return (prompt, completion) if prompt else (completion[:1], completion[1:])

    def check_fits(self, documents: list[Document], limit: int) -> None:
        """Raise InputError for the first document that leaves no room for what is written about
        it. `limit`: tokens of the engine's context.
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
        """Return the tokens that a document may have in an engine's context of `limit` tokens."""
        around = len(self.context(Document("", "."))) if self.natural else len(self.bare)
        return limit - around - self.task.max_new_tokens
