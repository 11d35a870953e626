"""The layout of questions and answers in token ids.

A form decides the ids before a prompt x (with or without a document), between x and its answer y,
and the token that ends y. Teacher and student read the same ids for x and y.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.records import Document, Ids
from sleep_rl.text.answer_style import SENTENCE, AnswerStyle
from sleep_rl.text.chat_template import conversation_pieces, read_template
from sleep_rl.text.tokens import TextTokenizer

DOCUMENTS_KEPT = 4096  # contexts whose ids are cached
END_OF_SENTENCE = re.compile(r"[.!?][\"')\]]*(?=\s|$)")


class Form(Protocol):
    """The layout of a sequence opener + x + marker + y + end."""

    name: str
    opener: Ids  # between the context and x
    marker: Ids  # after a generated x, so that the model answers
    end: int  # end token of y, in training and serving
    within_prompt: bool  # whether the student may continue a prefix that ends inside x

    def context(self, document: Document | None) -> Ids:
        """Return the ids before the opener, with or without a document."""

    def question(self, text: str) -> Ids:
        """Return the ids of a question with the marker."""

    def answer(self, text: str) -> Ids:
        """Return the ids of an answer, without its end."""

    def x_length(self, sequence_T: Ids) -> int | None:
        """Return the number of tokens up to the end of the first marker; None without a marker."""


class NaturalForm(Form, Protocol):
    """A form for natural language."""

    def context(self, document: Document | None, style: AnswerStyle = SENTENCE) -> Ids:
        """Return the ids before the opener, with a document and the instruction and examples of a
        style, or without all of it.
        """

    def conversation(self, examples: Sequence[tuple[str, str]], text: str) -> Ids:
        """Return the prompt for an answer to `text` after answered examples."""

    def answer_end(self, text: str) -> int | None:
        """Return the position of the end of a complete answer in a longer text; None: there is
        none.
        """


class TaskForm:
    """The fixed form of a task with its own small base; each part is tokenized by itself.

    Raises InputError if opener or marker have no tokens, or the tokenizer has no eos.
    """

    name = "task"
    within_prompt = True

    def __init__(self, opener: str, marker: str, tokens: TextTokenizer):
        self._tokens = tokens
        self._bos = bos_of(tokens.tokenizer)
        self.opener = tokens.ids(opener)
        self.marker = tokens.ids(marker)
        self.end = eos_of(tokens.tokenizer)
        if not self.opener or not self.marker:
            raise InputError(
                f"task: opener and marker need at least one token each, got {len(self.opener)} and "
                f"{len(self.marker)}"
            )

    def context(self, document: Document | None) -> Ids:
        return self._bos + (self._tokens.plain_ids(document.text) if document else ())

    def question(self, text: str) -> Ids:
        """Return the ids of a prompt, which contains the marker."""
        return self._tokens.plain_ids(text)

    def answer(self, text: str) -> Ids:
        """Return the ids of an answer, without its end."""
        return self._tokens.plain_ids(text)

    def x_length(self, sequence_T: Ids) -> int | None:
        """Return the number of tokens up to the end of the first marker; None without one."""
        return end_of(self.marker, sequence_T)


class RawForm:
    """Plain text for base models: the document, `Question: x` and `Answer: y`, each on a new
    line.
    """

    name = "raw"
    opener: Ids = ()
    within_prompt = False
    header = "Question:"
    marker_text = "\nAnswer:"

    def __init__(self, tokens: TextTokenizer):
        self._tokens = tokens
        self._bos = bos_of(tokens.tokenizer)
        self.end = eos_of(tokens.tokenizer)
        self.marker = tokens.ids(self.marker_text)

    @lru_cache(maxsize=DOCUMENTS_KEPT)  # noqa: B019  one form lives as long as its run
    def context(self, document: Document | None, style: AnswerStyle = SENTENCE) -> Ids:
        if document is None:
            return self._bos + self._tokens.parts((self.header, " What"))[0]
        shown = [
            f"{text}\n\n{self.header} {asked}{self.marker_text} {answer}\n\n\n"
            for text, asked, answer in style.examples
        ]
        pieces = ("", "".join(shown) + document.text.strip(), f"\n\n{self.header}", " What")
        return self._bos + sum(self._tokens.parts(pieces)[:3], ())

    def question(self, text: str) -> Ids:
        """Return the ids of a question on the header's line, and of the marker."""
        pieces = (self.header, f" {text.strip()}", self.marker_text, " The")
        return sum(self._tokens.parts(pieces)[1:3], ())

    def answer(self, text: str) -> Ids:
        """Return the ids of an answer on the marker's line, without its end."""
        return self._tokens.parts((self.marker_text, f" {text.strip()}"))[1]

    def x_length(self, sequence_T: Ids) -> int | None:
        """Return the number of tokens up to the end of the first marker; None without one.

        The marker is searched in the text, since its first token may contain the end of x.
        """
        whole = self._tokens.text(sequence_T, special=True)
        at = whole.find(self.marker_text)
        if at < 0:
            return None
        return self._tokens.token_at(sequence_T, at + len(self.marker_text))

    def conversation(self, examples: Sequence[tuple[str, str]], text: str) -> Ids:
        """Return the prompt for an answer to `text` after answered examples, one a paragraph."""
        shown = [f"{asked}\nAnswer: {answer}\n\n" for asked, answer in examples]
        pieces = ("", "".join(shown) + text, self.marker_text)
        return self._bos + sum(self._tokens.parts(pieces), ())

    def answer_end(self, text: str) -> int | None:
        """Return the end of the first line: an answer of a base model is one line."""
        at = text.find("\n", len(text) - len(text.lstrip()))
        return at if at >= 0 else None


class ChatForm:
    """The tokenizer's chat template: document and question are the user's turn, y is the
    assistant's.

    Raises InputError if the tokenizer has no usable template.
    """

    name = "chat"
    opener: Ids = ()
    within_prompt = False
    document_header = "\n\nDocument:\n"
    question_header = "\n\nQuestion:"

    def __init__(self, tokens: TextTokenizer):
        if not tokens.tokenizer.chat_template:
            raise InputError(
                "model.format: auto or raw for a tokenizer without a chat template, got chat"
            )
        self._tokens = tokens
        self.template = read_template(tokens.tokenizer)
        before = self.template.before
        space = before[len(before.rstrip()) :] or "\n"
        self._question_header = self.question_header + space
        self.marker = tokens.parts(("", "What?", self.template.between))[2]
        self.end = self._end_of_turn()

    def _end_of_turn(self) -> int:
        """Return the added token that ends a turn in the template; eos if there is none."""
        added = set(self._tokens.tokenizer.get_added_vocab().values())
        found = [token for token in self._tokens.ids(self.template.end) if token in added]
        return found[0] if found else eos_of(self._tokens.tokenizer)

    @lru_cache(maxsize=DOCUMENTS_KEPT)  # noqa: B019  one form lives as long as its run
    def context(self, document: Document | None, style: AnswerStyle = SENTENCE) -> Ids:
        if document is None:
            return self._tokens.parts((self.template.before, "What"))[0]
        opening = style.instruction + self.document_header
        turns = []
        for text, asked, answer in style.examples:
            turns.append(("user", f"{opening}{text}{self._question_header}{asked}"))
            turns.append(("assistant", answer))
        *shown, before, _, _ = conversation_pieces(
            self._tokens.tokenizer, [*turns, ("user", "What")]
        )
        pieces = (*shown, before + opening, document.text.strip(), self._question_header, "What")
        return sum(self._tokens.parts(pieces)[:-1], ())

    def question(self, text: str) -> Ids:
        """Return the ids of a user's turn, and of the header of the assistant's."""
        pieces = (self.template.before, text.strip(), self.template.between)
        return sum(self._tokens.parts(pieces)[1:], ())

    def answer(self, text: str) -> Ids:
        """Return the ids of an assistant's turn, without its end."""
        return self._tokens.parts((self.template.between, text.strip()))[1]

    def x_length(self, sequence_T: Ids) -> int | None:
        """Return the number of tokens up to the end of the first marker; None without one."""
        return end_of(self.marker, sequence_T)

    def conversation(self, examples: Sequence[tuple[str, str]], text: str) -> Ids:
        """Return the prompt for an answer to `text` after answered examples, two turns each."""
        turns = [
            (role, content)
            for asked, answer in examples
            for role, content in (("user", asked), ("assistant", answer))
        ]
        pieces = conversation_pieces(self._tokens.tokenizer, [*turns, ("user", text)])
        return sum(self._tokens.parts(pieces), ())

    def answer_end(self, text: str) -> int | None:
        """Return the end of the last complete sentence."""
        ends = [match.end() for match in END_OF_SENTENCE.finditer(text)]
        return ends[-1] if ends else None


def choose_form(format: str, opener: str, marker: str, tokens: TextTokenizer) -> Form:
    """Return the form of a task's texts.

    `format`: model.format (auto, chat or raw), for tasks in natural language; a task with opener
    and marker has a TaskForm. Raises InputError.
    """
    if opener or marker:
        return TaskForm(opener, marker, tokens)
    chat = format == "chat" or (format == "auto" and bool(tokens.tokenizer.chat_template))
    return ChatForm(tokens) if chat else RawForm(tokens)


def other_form(form: Form, tokens: TextTokenizer) -> Form | None:
    """Return the other natural form of raw and chat; None if the tokenizer or task has only one."""
    if form.name == "chat":
        return RawForm(tokens)
    if form.name == "raw" and tokens.tokenizer.chat_template:
        return ChatForm(tokens)
    return None


def end_of(marker: Ids, sequence_T: Ids) -> int | None:
    """Return the number of tokens up to the end of the first marker; None without a marker."""
    width = len(marker)
    ends = range(width, len(sequence_T) + 1)
    return next((end for end in ends if sequence_T[end - width : end] == marker), None)


def bos_of(tokenizer: Any) -> Ids:
    """Return the tokenizer's bos token; empty if it has none."""
    return () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)


def eos_of(tokenizer: Any) -> int:
    """Return the tokenizer's eos token. Raises InputError if it has none."""
    if tokenizer.eos_token_id is None:
        raise InputError("tokenizer: an eos token is needed to end a generated sequence, got none")
    return tokenizer.eos_token_id
