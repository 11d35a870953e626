"""From a task's texts to token ids and back: the one place where bos, documents, openers and
answers are put together.

Pieces are tokenized one by one and joined as ids, so that the same piece gives the same ids for
teacher and student.
"""

from __future__ import annotations

from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.records import Document, Ids, Question, TrainingText
from sleep_rl.contracts.roles import Task


class PromptCodec:
    """A task's texts in a tokenizer's ids. Raises InputError when opener or marker give no ids or
    eos is missing.
    """

    def __init__(self, task: Task, tokenizer):
        self.task, self.tokenizer = task, tokenizer
        if tokenizer.eos_token_id is None:
            raise InputError(
                "tokenizer: an eos token is needed to end a written sequence, got none"
            )
        self.bos: Ids = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
        self.eos: Ids = (tokenizer.eos_token_id,)
        self.opener, self.marker = self.ids(task.opener), self.ids(task.marker)
        if not self.opener or not self.marker:
            raise InputError(
                f"task {task.name}: opener and marker need at least one token each, "
                f"got {len(self.opener)} and {len(self.marker)}"
            )

    def ids(self, text: str) -> Ids:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, ids: Ids) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def context(self, document: Document | None) -> Ids:
        """What stands in front of a prompt: bos, and the document when there is one."""
        return self.bos + (self.ids(document.text) if document else ())

    def document(self, document: Document) -> Ids:
        """A document as the model reads it while awake: bos, text, eos."""
        return self.context(document) + self.eos

    def question(self, question: Question) -> Ids:
        return self.ids(question.prompt)

    def split(self, written_T: Ids) -> tuple[Ids, Ids] | None:
        """A written sequence as (x with marker, y), or None when it has no marker or nothing behind
        it but eos.
        """
        end = self.x_length(written_T)
        if end is None or end == len(written_T):
            return None
        return (written_T[:end], written_T[end:]) if written_T[end:] != self.eos else None

    def x_length(self, written_T: Ids) -> int | None:
        """Tokens up to and with the first marker, None where there is none."""
        width = len(self.marker)
        ends = (
            end
            for end in range(width, len(written_T) + 1)
            if written_T[end - width : end] == self.marker
        )
        return next(ends, None)

    def baseline(self, text: TrainingText) -> tuple[Ids, Ids]:
        """(prompt, completion) of a baseline's training row; the completion ends with eos."""
        prompt = self.bos + self.ids(text.prompt)
        completion = self.ids(text.completion) + self.eos
        return (prompt, completion) if prompt else (completion[:1], completion[1:])

    def check_fits(self, documents: list[Document], limit: int) -> None:
        """Raises InputError for the first document that leaves no room for what is written about
        it.
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
