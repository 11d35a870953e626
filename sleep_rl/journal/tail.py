"""Reading a journal that grows: every call gives the records that were added since the last one."""

from __future__ import annotations

import json
import os
from pathlib import Path

from sleep_rl.contracts.errors import InputError
from sleep_rl.journal.schema import Record

PIECE = 8 << 20
"""Bytes read in one call, so that the first look at a long run does not hold anyone up for long."""


class Follower:
    """Follows the journal at `path`. `offset` of `size` bytes are read; `torn` lines among them
    could not be.
    """

    def __init__(self, path: Path, piece: int = PIECE) -> None:
        self.path, self._piece = path, piece
        self.offset = self.size = self.torn = 0
        self._last, self._file = b"", 0  # the last line read, and the file it stood in

    def more(self) -> tuple[bool, list[Record]]:
        """(whether the journal is another one than before, so that what was read no longer counts;
        the records that follow). A last line without its end is left for the next call. Raises
        InputError when it cannot be read; a journal that is not there yet is empty.
        """
        try:
            with open(self.path, "rb") as file:
                anew = self._changed(file.fileno())
                if anew:
                    self.offset = self.torn = 0
                self._file, self.size = (
                    os.fstat(file.fileno()).st_ino,
                    os.fstat(file.fileno()).st_size,
                )
                return anew, self._records(self._lines(file.fileno()))
        except FileNotFoundError:
            anew = self.offset > 0
            self.offset = self.size = self.torn = 0
            return anew, []
        except OSError as error:
            raise InputError(
                f"cannot read metrics: {error.strerror or error}: {self.path}"
            ) from error

    def _changed(self, file: int) -> bool:
        """Whether what was read does not stand there any more: a run that goes on cuts off what it
        does again.
        """
        if not self.offset:
            return False
        before = os.pread(file, len(self._last), self.offset - len(self._last))
        return os.fstat(file).st_ino != self._file or before != self._last

    def _lines(self, file: int) -> list[bytes]:
        """Whole lines, about as many as fit into a piece; at least one if there is one."""
        piece, size = b"", self._piece
        while b"\n" not in piece:
            piece, before = os.pread(file, size, self.offset), piece
            if len(piece) == len(before):
                return []
            size *= 2
        end = piece.rindex(b"\n") + 1
        lines = piece[:end].split(b"\n")[:-1]
        self.offset += end
        self._last = lines[-1] + b"\n"
        return lines

    def _records(self, lines: list[bytes]) -> list[Record]:
        records = []
        for line in lines:
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                sound = isinstance(record["kind"], str) and isinstance(record["t"], (int, float))
            except (ValueError, KeyError, TypeError, RecursionError):
                sound = False
            if sound:
                records.append(record)
            self.torn += not sound
        return records
