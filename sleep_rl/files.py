"""Reading what people point to: a file that is really one, so that no pipe or device keeps a
command waiting.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import Any, BinaryIO

# with all includes: YAML is read slowly, ten times more would take half a minute
CONFIG_BYTES = 1 << 15
JSON_BYTES = 1 << 28  # of a checkpoint's or a run's own files; tokenizers have tens of megabytes
DATA_BYTES = 1 << 32


def regular(path: str | os.PathLike) -> BinaryIO:
    """An open regular file. Raises OSError, whose `strerror` says it, for anything else, and
    ValueError for a name that cannot be one.
    """
    # or a pipe without a writer would wait for one
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return open(handle, "rb")
    os.close(handle)
    number, text = (
        (errno.EISDIR, os.strerror(errno.EISDIR))
        if stat.S_ISDIR(mode)
        else (errno.EINVAL, "Not a regular file")
    )
    raise OSError(number, text, path)


def checked(path: str | os.PathLike) -> str:
    """The path of a regular file, for a reader that would wait for anything else. Raises what
    `regular` does.
    """
    regular(path).close()
    return os.fspath(path)


def content(path: str | os.PathLike, most: int = DATA_BYTES) -> bytes:
    """The bytes of a regular file. Raises what `regular` does, and OSError for more than `most`
    bytes.
    """
    with regular(path) as file:
        data = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)
        if len(data) > most:
            raise OSError(errno.EFBIG, f"Larger than {most:,} bytes", path)
        return data + file.read()


def parsed(path: str | os.PathLike, most: int = DATA_BYTES) -> Any:
    """What a JSON file holds. Raises what `content` does, and ValueError, with words for people,
    for no JSON.
    """
    return parse(content(path, most))


def parse(data: bytes) -> Any:
    """What JSON holds. Raises ValueError, with words for people."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"expected UTF-8 text, got another encoding at byte {error.start}"
        ) from None
    if not text.strip():
        raise ValueError("the file is empty")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON, got {error}") from None
