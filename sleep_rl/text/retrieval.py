"""Retrieval: the documents that fit a question best, by BM25."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sleep_rl.contracts.records import Document

WORD = re.compile(r"\w+")
TOP = 3  # documents that stand in context, best first


class Retriever:
    """Ranks documents (pieces of files, as the task brings them) for a question."""

    def __init__(self, documents: Sequence[Document]):
        import bm25s  # its import takes seconds, and most runs do not retrieve

        self._documents = documents
        self._index = bm25s.BM25()
        self._index.index(
            [_words(d.text) or [d.text.strip()] for d in documents], show_progress=False
        )

    def best(self, question: str) -> list[Document]:
        """Return at most TOP documents that share a word with the question, best first."""
        query = _words(question)
        if not query:
            return []
        scores = self._index.get_scores(query)
        order = sorted(range(len(self._documents)), key=lambda n: (-scores[n], n))
        return [self._documents[n] for n in order[:TOP] if scores[n] > 0]


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())
