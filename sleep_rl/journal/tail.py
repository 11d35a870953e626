"""Incremental reader of a growing journal."""

from __future__ import annotations

import json
import os
from pathlib import Path

from sleep_rl.contracts.errors import InputError
from sleep_rl.journal.schema import Record

PIECE = 8 << 20
"""Bytes read in one call, so that the first call for a long journal returns soon."""


class Follower:
    """Reads the journal at `path` as it grows.

    `offset` of its `size` bytes are read; `torn` of the lines read were no records.
    """

    def __init__(self, path: Path, piece: int = PIECE) -> None:
        self.path = path
        self.offset = 0
        self.size = 0
        self.torn = 0
        self._piece = piece
        self._last = b""
        """The last line read."""
        self._file = 0
        """Inode that it was read from."""

    def more(self) -> tuple[bool, list[Record]]:
        """Return (whether the journal was truncated or replaced, so that earlier records are
        invalid; the records added since the last call).

        An incomplete last line is left for the next call. A missing file is empty. Raises
        InputError for a file that cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                changed = self._changed(file.fileno())
                if changed:
                    self.offset = self.torn = 0
                status = os.fstat(file.fileno())
                self._file = status.st_ino
                self.size = status.st_size
                return changed, self._records(self._lines(file.fileno()))
        except FileNotFoundError:
            changed = self.offset > 0
            self.offset = self.size = self.torn = 0
            return changed, []
        except OSError as error:
            raise InputError(
                f"cannot read metrics: {error.strerror or error}: {self.path}"
            ) from error

    def _changed(self, file: int) -> bool:
        """Return whether the bytes read before are not in the file any more, since a resumed run
        truncates its journal.
        """
        if not self.offset:
            return False
        before = os.pread(file, len(self._last), self.offset - len(self._last))
        return os.fstat(file).st_ino != self._file or before != self._last

    def _lines(self, file: int) -> list[bytes]:
        """Return complete lines of about one piece, at least one line if there is one."""
        piece = b""
        size = self._piece
        while b"\n" not in piece:
            before = len(piece)
            piece = os.pread(file, size, self.offset)
            if len(piece) == before:
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
                valid = isinstance(record["kind"], str) and isinstance(record["t"], (int, float))
            except (ValueError, KeyError, TypeError, RecursionError):
                valid = False
            if valid:
                records.append(record)
            else:
                self.torn += 1
        return records
