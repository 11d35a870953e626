"""Tokenize and decode texts with any tokenizer, and map positions in a text to tokens.

Text is tokenized as a whole, as in the rendered prompt, since a token may span the border between
two parts ("?\\n" is one token in Qwen's and Llama-3's vocabularies). The border of a part is found
in the text and mapped to tokens.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from sleep_rl.contracts.records import Ids

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""Result of decoding the first bytes of a character whose last bytes are in the next token."""


class TextTokenizer:
    """A Hugging Face tokenizer that adds no special tokens."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        added = [
            token for token in tokenizer.get_added_vocab() if token.strip() and not token.isalnum()
        ]
        added.sort(key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, added))) if added else None

    def ids(self, text: str) -> Ids:
        """Tokenize text in which control strings such as `<|im_end|>` are control tokens."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def plain_ids(self, text: str) -> Ids:
        """Tokenize a user's text, in which control strings are plain text."""
        if not self._control or not self._control.search(text):
            return self.ids(text)
        return self.parts(("", text))[1]

    def parts(self, pieces: Sequence[str]) -> list[Ids]:
        """Tokenize pieces as one text; return the ids of each piece.

        `pieces`: template text and user's text in alternation, beginning with template text.
        Control strings are control tokens in template text only. A token that spans a border
        belongs to the piece in which it begins.
        """
        segments = self._segments(pieces)
        ends = []
        position = 0
        for piece in pieces:
            position += len(piece)
            ends.append(position)
        parts: list[list[int]] = [[] for _ in pieces]
        offset = 0
        for segment in segments:
            ids, starts = self._located(segment)
            for token, start in zip(ids, starts, strict=True):
                at = min(bisect_left(ends, offset + start + 1), len(ends) - 1)
                parts[at].append(token)
            offset += len(segment)
        return [tuple(part) for part in parts]

    def text(self, ids: Ids, *, special: bool = False) -> str:
        """Decode, without control tokens unless `special`."""
        return self.tokenizer.decode(
            ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )

    def token_at(self, ids: Ids, position: int) -> int:
        """Return the number of leading tokens whose text reaches `position` characters.

        Control tokens count with their text.
        """
        low = 0
        high = len(ids)
        while low < high:
            middle = (low + high) // 2
            if self._length(ids[:middle]) < position:
                low = middle + 1
            else:
                high = middle
        return low

    def _length(self, ids: Ids) -> int:
        return len(self.text(ids, special=True).rstrip(INCOMPLETE))

    def _segments(self, pieces: Sequence[str]) -> list[str]:
        """Split the joined pieces inside each control string of the user's text, so that a segment
        has only control strings of the template.
        """
        cuts = []
        position = 0
        for n, piece in enumerate(pieces):
            if n % 2 and self._control:
                cuts += [position + found.start() + 1 for found in self._control.finditer(piece)]
            position += len(piece)
        whole = "".join(pieces)
        borders = [0, *cuts, len(whole)]
        return [whole[a:b] for a, b in pairwise(borders) if a < b]

    def _located(self, text: str) -> tuple[list[int], list[int]]:
        """Return the ids of a text, and the position of each token's first character."""
        if getattr(self.tokenizer, "is_fast", False):
            coded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            return coded["input_ids"], [start for start, _ in coded["offset_mapping"]]
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids, [self._length(tuple(ids[:n])) for n in range(len(ids))]
