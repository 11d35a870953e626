"""The text of a row of a dataset: of a column, a chat, or a prompt with its completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COLUMNS = ("text", "content", "document", "body")
"""Columns that may have a row's text; the first one with a text is used."""
EXPECTED = f"a text in {', '.join(COLUMNS)}, or messages, or prompt and completion"


def row_text(row: Mapping[str, Any]) -> str:
    """Return the text of a row; empty if its columns are empty. Raises ValueError for a row without
    such columns, and for an invalid chat.
    """
    texts = [row[column] for column in COLUMNS if isinstance(row.get(column), str)]
    filled = next((text for text in texts if text.strip()), "")
    if filled:
        return filled
    if isinstance(row.get("messages"), list):
        return chat_text(row["messages"])
    prompt = row.get("prompt")
    completion = row.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        return chat_text([*prompt, *completion])
    if isinstance(prompt, str) and isinstance(completion, str):
        return _joined(prompt, completion)
    if texts:
        return ""
    raise ValueError(f"expected {EXPECTED}, got {', '.join(map(str, row))[:80] or 'none'}")


def chat_text(messages: list[Any]) -> str:
    """Return a chat as one text, with the role before each message. Raises ValueError.

    `messages`: objects with `role` and `content`, which is a text, a list of parts (those with
    `text` are used), or null (a tool call).
    """
    texts = []
    for number, message in enumerate(messages, start=1):
        role = message.get("role") if isinstance(message, Mapping) else None
        content = message.get("content") if isinstance(message, Mapping) else message
        if isinstance(content, list):
            parts = [part.get("text") for part in content if isinstance(part, Mapping)]
            content = "\n".join(part for part in parts if isinstance(part, str))
        if not isinstance(role, str) or not role or not isinstance(content, str | None):
            raise ValueError(
                f"message {number}: expected role and content, got {str(message)[:60]!r}"
            )
        if content and content.strip():
            texts.append(f"{role[0].upper()}{role[1:]}: {content.strip()}")
    return "\n\n".join(texts)


def _joined(prompt: str, completion: str) -> str:
    """Return both as one text, separated by a line break unless there is white space."""
    touching = prompt and completion and not (prompt[-1].isspace() or completion[0].isspace())
    return f"{prompt}\n{completion}" if touching else prompt + completion
