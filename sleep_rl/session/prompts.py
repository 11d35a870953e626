"""Encode a task's texts as token ids: bos, documents, openers, prompts, markers and answers.

Each part is tokenized by itself and the ids are joined, so that the same part has the same ids for
teacher and student.
"""

from __future__ import annotations

from typing import Any

from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.records import Document, Ids, Question, TrainingText
from sleep_rl.contracts.roles import Task


class PromptCodec:
    """Encodes and decodes a task's texts.

    Raises InputError if the opener or marker has no tokens, or the tokenizer no eos.
    """

    def __init__(self, task: Task, tokenizer: Any):
        self.task = task
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise InputError(
                "tokenizer: an eos token is needed to end a generated sequence, got none"
            )
        self.bos: Ids = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
        self.eos: Ids = (tokenizer.eos_token_id,)
        self.opener = self.ids(task.opener)
        self.marker = self.ids(task.marker)
        if not self.opener or not self.marker:
            raise InputError(
                f"task {task.name}: opener and marker need at least one token each, "
                f"got {len(self.opener)} and {len(self.marker)}"
            )

    def ids(self, text: str) -> Ids:
        """Tokenize a part, without special tokens."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, ids: Ids) -> str:
        """Decode token ids, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def context(self, document: Document | None) -> Ids:
        """Return the ids of the context window: bos, and the document if there is one."""
        return self.bos + (self.ids(document.text) if document else ())

    def document(self, document: Document) -> Ids:
        """Return the ids of a document for a wake update: bos, text, eos."""
        return self.context(document) + self.eos

    def question(self, question: Question) -> Ids:
        """Return the ids of an evaluation question's prompt."""
        return self.ids(question.prompt)

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
        width = len(self.marker)
        ends = (
            end
            for end in range(width, len(sequence_T) + 1)
            if sequence_T[end - width : end] == self.marker
        )
        return next(ends, None)

    def baseline(self, text: TrainingText) -> tuple[Ids, Ids]:
        """Return (prompt_T, completion_T) of a training text; the completion ends with eos.

        If there is neither bos nor prompt, the first token of the completion becomes the prompt.
        """
        prompt = self.bos + self.ids(text.prompt)
        completion = self.ids(text.completion) + self.eos
        return (prompt, completion) if prompt else (completion[:1], completion[1:])

    def check_fits(self, documents: list[Document], limit: int) -> None:
        """Raise InputError for the first document that is empty or, with a generated sequence,
        longer than `limit`, the engine's max_model_len.
        """
        room = limit - len(self.bos) - len(self.opener) - self.task.max_new_tokens
        for document in documents:
            length = len(self.ids(document.text))
            if length == 0:
                raise InputError(f"document {document.id}: at least one token, got an empty text")
            if length > room:
                raise InputError(
                    f"document {document.id}: at most {room} tokens fit into "
                    f"rollouts.engine.max_model_len = {limit}, got {length}"
                )
