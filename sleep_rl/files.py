"""Read regular files only, since a pipe or device could block; write files and folders atomically,
so that neither a reader nor a power failure leaves a partial one.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

# with all includes: PyYAML is slow, ten times more would take half a minute
CONFIG_BYTES = 1 << 15
JSON_BYTES = 1 << 28  # of a checkpoint's or a run's own files; tokenizers have tens of megabytes
DATA_BYTES = 1 << 32


def spelled(path: str | os.PathLike) -> str:
    """Return the existing form of `path`: unchanged, or with names in the other Unicode form that
    looks the same (é as one character, or as e and an accent).
    """
    path = os.fspath(path)
    parent, name = os.path.split(path.rstrip(os.sep))
    if os.path.lexists(path) or not name or path.isascii():
        return path
    folder = spelled(parent)
    try:
        names = sorted(os.listdir(folder or "."))
    except (OSError, ValueError):
        return path
    same = [other for other in names if nfc(other) == nfc(name)]
    return os.path.join(folder, same[0]) if same else path


def nfc(name: str) -> str:
    """Return a name in Unicode normal form C, in which equal names compare equal."""
    return unicodedata.normalize("NFC", name)


def regular(path: str | os.PathLike) -> BinaryIO:
    """Open a regular file for reading bytes.

    Raises OSError (with `strerror`) for anything else, and ValueError for a name with a NUL.
    """
    # O_NONBLOCK: opening a pipe without a writer would block
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        handle = os.open(spelled(path), flags)
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
    """Return the path of a file after checking that it is a regular one. Raises as `regular`."""
    regular(path).close()
    return spelled(path)


def content(path: str | os.PathLike, most: int = DATA_BYTES) -> bytes:
    """Return the bytes of a regular file. Raises as `regular`, and OSError above `most` bytes."""
    with regular(path) as file:
        data = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)
        if len(data) > most:
            raise OSError(errno.EFBIG, f"Larger than {most:,} bytes", path)
        return data + file.read()


def parsed(path: str | os.PathLike, most: int = DATA_BYTES) -> Any:
    """Return the data of a JSON file. Raises as `content`, and ValueError for invalid JSON."""
    return parse(content(path, most))


def parse(data: bytes) -> Any:
    """Return the data of a JSON text. Raises ValueError with a readable message."""
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


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Replace the file at `path` by one that holds `data`, completely or not at all.

    The bytes are written to a hidden file beside `path`, which is synced and renamed. Raises
    OSError; an earlier file at `path` is then intact.
    """
    target = Path(path)
    temporary = _fresh_name(target)
    try:
        # "x" does not follow a link of this name
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync(target.parent)
    finally:
        _discard(temporary)


@contextmanager
def atomic_folder(target: str | os.PathLike, replace: bool = True) -> Iterator[Path]:
    """Yield an empty folder beside `target` that is renamed to `target` after the block.

    Its files are synced before. `replace`: whether an existing folder is replaced; otherwise one
    that is not empty is an error. Raises OSError, and any exception of the block; `target` is then
    unchanged and the new folder removed.
    """
    target = Path(target)
    temporary = _fresh_name(target)
    replaced = temporary.with_suffix(".replaced")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _sync_tree(temporary)
        if replace and target.is_dir() and not target.is_symlink():
            _discard(replaced)
            os.rename(target, replaced)
        try:
            os.rename(temporary, target)
        except OSError:
            if replaced.is_dir():
                os.rename(replaced, target)
            raise
        _sync(target.parent)
    finally:
        _discard(temporary)
        _discard(replaced)


def _fresh_name(target: Path) -> Path:
    """Return the path of this process's temporary file or folder for `target`, and remove those of
    killed processes of this host.
    """
    prefix = f".{target.name}.{os.uname().nodename}-"
    fresh = target.with_name(f"{prefix}{os.getpid()}.partial")
    _discard(fresh)
    siblings = os.listdir(target.parent) if target.parent.is_dir() else []
    for name in siblings:
        pid, _, suffix = name.removeprefix(prefix).partition(".")
        is_leftover = (
            suffix in ("partial", "replaced") and pid.isdigit() and not _is_alive(int(pid))
        )
        if name.startswith(prefix) and is_leftover:
            _discard(target.with_name(name))
    return fresh


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _discard(path: Path) -> None:
    """Remove a file, a link or a folder with its content; errors are ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _sync_tree(folder: Path) -> None:
    """Sync `folder` and all files and folders in it; a link is synced with its folder."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                _sync(path)
        _sync(Path(parent))


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
