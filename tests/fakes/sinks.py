"""A sink of a journal."""

from __future__ import annotations


class Listener:
    """A sink that stores its calls, or raises."""

    def __init__(self, name="listener", failed="", raises=None, raises_on_close=None):
        self.name = name
        self.failed = failed
        self.raises = raises
        self.raises_on_close = raises_on_close
        self.heard = []
        self.closed = False
        self.recalled = None

    def log(self, record):
        self.heard.append(record["kind"])
        if self.raises:
            raise self.raises

    def recall(self, records):
        self.recalled = [r.get("step") for r in records]

    def close(self):
        self.closed = True
        if self.raises_on_close:
            raise self.raises_on_close
