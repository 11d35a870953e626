"""From a task's texts to token ids and back: where bos, documents, openers and answers are joined.

Pieces are tokenized one by one and joined as ids, so that the same piece has the same ids for
teacher and student.
"""

from __future__ import annotations

from typing import Any

from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.records import Document, Ids, Question, TrainingText
from sleep_rl.contracts.roles import Task


class PromptCodec:
    """A task's texts in a tokenizer's ids.

    Raises InputError when opener or marker give no ids or the tokenizer has no eos.
    """

    def __init__(self, task: Task, tokenizer: Any):
        self.task = task
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise InputError(
                "tokenizer: an eos token is needed to end a written sequence, got none"
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
        """Tokenize a piece, without special tokens."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, ids: Ids) -> str:
        """Decode, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def context(self, document: Document | None) -> Ids:
        """Return what is in front of a prompt: bos, and the document if there is one."""
        return self.bos + (self.ids(document.text) if document else ())

    def document(self, document: Document) -> Ids:
        """Return a document as the model reads it while awake: bos, text, eos."""
        return self.context(document) + self.eos

    def question(self, question: Question) -> Ids:
        """Return the prompt of an evaluation question."""
        return self.ids(question.prompt)

    def split(self, written_T: Ids) -> tuple[Ids, Ids] | None:
        """Return a written sequence as (x with marker, y); None when it has no marker, or nothing
        but eos after it.
        """
        end = self.x_length(written_T)
        if end is None or end == len(written_T):
            return None
        answer_T = written_T[end:]
        return None if answer_T == self.eos else (written_T[:end], answer_T)

    def x_length(self, written_T: Ids) -> int | None:
        """Return the number of tokens up to and with the first marker, None if there is none."""
        width = len(self.marker)
        ends = (
            end
            for end in range(width, len(written_T) + 1)
            if written_T[end - width : end] == self.marker
        )
        return next(ends, None)

    def baseline(self, text: TrainingText) -> tuple[Ids, Ids]:
        """Return (prompt_T, completion_T) of a training text; the completion ends with eos.

        Without bos and prompt the first token of the completion becomes the prompt.
        """
        prompt = self.bos + self.ids(text.prompt)
        completion = self.ids(text.completion) + self.eos
        return (prompt, completion) if prompt else (completion[:1], completion[1:])

    def check_fits(self, documents: list[Document], limit: int) -> None:
        """Raise InputError for the first document that leaves no room for what is written about
        it. `limit`: tokens of the engine's context.
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
