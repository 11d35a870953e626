"""The texts of a tokenizer's chat template around a user's turn and the assistant's answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from sleep_rl.contracts.errors import InputError, one_line

USER = "UsersTurnStandsHere"
ASSISTANT = "AssistantsTurnStandsHere"
SYSTEM = "You are a helpful assistant."
"""For templates that refuse a conversation without a system turn."""


@dataclass(frozen=True)
class ChatTemplate:
    """The text around one question and its answer."""

    before: str  # up to the user's text: bos, a default system turn, the user's header
    between: str  # from the end of the user's text to the first character of the answer
    end: str  # text after the answer; its first control token ends a sampled one


def read_template(tokenizer: Any) -> ChatTemplate:
    """Return the texts of the tokenizer's template; thinking is disabled if the template has that
    option.

    Raises InputError if the template cannot be rendered, or changes the texts of the turns.
    """
    error: Exception | None = None
    for system in ((), ({"role": "system", "content": SYSTEM},)):
        try:
            return _rendered(tokenizer, list(system))
        except (TemplateError, TypeError, ValueError, KeyError) as reason:
            error = error or reason
    raise InputError(
        f"model.format: raw for a tokenizer whose chat template cannot be used ({one_line(error)})"
    )


def conversation_pieces(tokenizer: Any, turns: list[tuple[str, str]]) -> list[str]:
    """Return the rendered turns up to the start of the assistant's next one, as template text and
    user's text in alternation.

    `turns`: (role, text), the last one the user's. Raises InputError as `read_template`.
    """
    marks = [f"Turn{n}StandsHere" for n in range(len(turns))]
    messages = [
        {"role": role, "content": mark} for (role, _), mark in zip(turns, marks, strict=True)
    ]
    try:
        whole = _render(tokenizer, messages, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError, KeyError):
        system = {"role": "system", "content": SYSTEM}
        try:
            whole = _render(tokenizer, [system, *messages], add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise InputError(
                "model.format: raw for a tokenizer whose chat template refuses a conversation "
                f"({one_line(error)})"
            ) from None
    pieces = []
    for (_, text), mark in zip(turns, marks, strict=True):
        before, _, whole = whole.partition(mark)
        pieces += [before, text]
    return [*pieces, whole]


def _rendered(tokenizer: Any, turns: list[dict]) -> ChatTemplate:
    asked = [*turns, {"role": "user", "content": USER}]
    question = _render(tokenizer, asked, add_generation_prompt=True)
    answered = _render(tokenizer, [*asked, {"role": "assistant", "content": ASSISTANT}])
    if question.count(USER) != 1 or answered.count(ASSISTANT) != 1:
        raise ValueError("it does not contain the text of each turn exactly once")
    before, _, between = question.partition(USER)
    return ChatTemplate(before, between, answered.partition(ASSISTANT)[2])


def _render(tokenizer: Any, turns: list[dict], **options: Any) -> str:
    return tokenizer.apply_chat_template(turns, tokenize=False, enable_thinking=False, **options)
