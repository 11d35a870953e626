"""Split documents into pieces that fit the context."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

SEPARATORS = (
    re.compile(r"\n\s*\n"),
    re.compile(r"\n"),
    re.compile(r"(?<=[.!?])\s+"),
    re.compile(r"\s+"),
)
"""Where a document is split, in order of preference: paragraphs, lines, sentences, words."""


def pieces(text: str, max_tokens: int, count_tokens: Callable[[str], int]) -> list[str]:
    """Split a text greedily into pieces of at most `max_tokens` tokens, at the best separators.

    A single word of more tokens is split between characters.
    """
    text = text.strip()
    return list(_split(text, count_tokens(text), max_tokens, count_tokens, 0))


def _split(
    text: str, size: int, max_tokens: int, count_tokens: Callable[[str], int], level: int
) -> Iterator[str]:
    """Split at SEPARATORS[level], and at the next levels where a part is still too long.

    `size`: tokens of `text`. Each text is counted once, since counting dominates the time.
    """
    if size <= max_tokens:
        yield text
        return
    if level == len(SEPARATORS):
        step = max(len(text) * max_tokens // (2 * size), 1)
        for start in range(0, len(text), step):
            yield text[start : start + step]
        return
    if not SEPARATORS[level].search(text):
        yield from _split(text, size, max_tokens, count_tokens, level + 1)
        return
    piece = ""
    size = 0

    # Counted as a whole: the sum over its parts may differ by a few tokens.
    def finished(piece: str) -> Iterator[str]:
        return _split(piece, count_tokens(piece), max_tokens, count_tokens, level + 1)

    for part, separator in _parts(text, SEPARATORS[level]):
        part_size = count_tokens(part + separator)
        if piece and size + part_size > max_tokens:
            yield from finished(piece.strip())
            piece = ""
            size = 0
        if not piece and part_size > max_tokens:
            *complete, piece = _split(part, part_size, max_tokens, count_tokens, level + 1)
            yield from complete
            piece = piece + separator
            size = count_tokens(piece)
        else:
            piece = piece + part + separator
            size = size + part_size
    if piece.strip():
        yield from finished(piece.strip())


def _parts(text: str, separator: re.Pattern) -> Iterator[tuple[str, str]]:
    """Yield (part, separator that follows it); the last separator is empty."""
    start = 0
    for match in separator.finditer(text):
        yield text[start : match.start()], match.group()
        start = match.end()
    yield text[start:], ""
