"""Files of other kinds than expected, and damaged folders of documents."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from tests.fakes.mutations import bytes_of, json_of


def _replaced(path: Path, make: Callable[[], object]) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    make()


FILES: dict[str, Callable[[Path], object]] = {
    "missing": lambda p: _replaced(p, lambda: None),
    "a folder": lambda p: _replaced(p, p.mkdir),
    "a pipe": lambda p: _replaced(p, lambda: os.mkfifo(p)),
    "a broken link": lambda p: _replaced(p, lambda: p.symlink_to(p.parent / "nowhere")),
    "a link to itself": lambda p: _replaced(p, lambda: p.symlink_to(p)),
    "a link to /dev/zero": lambda p: _replaced(p, lambda: p.symlink_to("/dev/zero")),
    "a link to /dev/null": lambda p: _replaced(p, lambda: p.symlink_to("/dev/null")),
    "a link to memory of this process": lambda p: _replaced(
        p, lambda: p.symlink_to("/proc/self/mem")
    ),
    "unreadable": lambda p: p.chmod(0),  # which does not keep root out
}
"""Description -> function that replaces a file by something else."""


def document_folders(rng: random.Random, root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (description, folder) of folders of documents (txt, md, jsonl), of which one is
    damaged, is not a file, or has an unusual name. The folders are in `root`.
    """
    text = "Nora Costa moved to Oslo in May. She keeps a parrot.\n\nThe parrot is called Rio.\n"
    rows = [{"text": f"Document {i}: {text}", "id": f"d{i}"} for i in range(3)]
    sound = {
        "a.txt": text.encode(),
        "b.md": f"# Nora\n\n{text}".encode(),
        "c.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
    }
    numbers = count(1)

    def folder(files: dict[str, bytes]) -> Path:
        made = root / f"documents-{next(numbers)}"
        made.mkdir(parents=True)
        for name, content in files.items():
            (made / name).write_bytes(content)
        return made

    for name, content in sound.items():
        for what, changed in bytes_of(rng, content):
            yield f"{name}: {what}", folder({**sound, name: changed})
    for what, changed in json_of(rng, rows[1], 30):
        yield (
            f"c.jsonl: {what}",
            folder({**sound, "c.jsonl": changed + b"\n"}),
        )
    for what, change in FILES.items():
        made = folder(sound)
        change(made / "a.txt")
        yield f"a.txt is {what}", made
    for name in (
        "x" * 250 + ".txt",
        "🦙.txt",
        " .txt",
        ".hidden.txt",
        "-rf.txt",
        "a\nb.txt",
        "\x1b[2J.txt",
        "a'\"`$(id).txt",
        "A.TXT",
        "a.TXT",
        "a.pdf",
        "a.docx",
        "a",
        "a.tar.gz",
    ):
        yield (
            f"a file named {name[:20]!r}",
            folder({**sound, name: text.encode()}),
        )
    broken = os.fsencode(folder(sound)) + b"/\xff\xfe.txt"
    with open(broken, "wb") as file:
        file.write(text.encode())
    yield "a file whose name is no UTF-8", Path(os.fsdecode(os.path.dirname(broken)))
    yield "no file at all", folder({})
    yield "only empty files", folder(dict.fromkeys(sound, b""))
    yield (
        "the same text in every file",
        folder({f"{i}.txt": text.encode() for i in range(20)}),
    )
    yield "one word of a megabyte", folder({"a.txt": b"x" * 1_000_000})
    loop = folder(sound)
    (loop / "inside").symlink_to(loop)
    yield "a folder inside itself", loop
    down = folder(sound)
    down.joinpath(*["d"] * 100).mkdir(parents=True)
    yield "a hundred folders deep", down
