"""Damaged and hostile bytes, YAML and JSON from a seed."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

ODD = [
    None,
    True,
    False,
    0,
    -1,
    1,
    7,
    3.5,
    -0.0,
    1e308,
    10**30,
    -(10**30),
    2**63,
    10**400,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    " ",
    "x",
    "\0",
    "\ud800",
    "null",
    "0",
    "-",
    "..",
    "../../x",
    "/",
    "a/b",
    "~",
    "é\u202e🦙",
    "x" * 5000,
    "\x1b[31m",
    "{}",
    "{student}",
    "%s",
    [],
    [[]],
    [None],
    [1, "a"],
    [1e400],
    {},
    {"": 1},
    {"a": {"b": [1]}},
    {"__class__": "os.system"},
]
"""Values that few keys allow."""


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


# ---- bytes


def bytes_of(rng: random.Random, data: bytes) -> Iterator[tuple[str, bytes]]:
    """Return (description, content) of a text file that is damaged, or of another program's
    format.
    """
    text = data.decode("utf-8")
    half = rng.randrange(len(data) + 1)
    yield "empty", b""
    yield "only spaces", b" \n\t \r\n"
    yield f"cut off at byte {half}", data[:half]
    yield "begins in the middle", data[half:]
    yield "twice", data + data
    yield "BOM", b"\xef\xbb\xbf" + data
    yield "UTF-16", text.encode("utf-16")
    yield "UTF-16 without BOM", text.encode("utf-16-le")
    yield "UTF-32", text.encode("utf-32")
    yield "latin-1", (text + "\n# caf\u00e9").encode("latin-1", "replace")
    yield "half a character", data[:half] + "é".encode()[:1] + data[half:]
    yield "NUL bytes", data[:half] + b"\0\0" + data[half:]
    yield "only NUL bytes", bytes(len(data))
    yield "emoji", data[:half] + "🦙👩‍👩‍👧".encode() + data[half:]
    yield "lone surrogate", data[:half] + b"\xed\xa0\x80" + data[half:]
    yield "CR LF", data.replace(b"\n", b"\r\n")
    yield "CR only", data.replace(b"\n", b"\r")
    yield "tabs", data.replace(b"  ", b"\t")
    yield "control characters", data[:half] + bytes(range(1, 32)) + data[half:]
    yield "random bytes", rng.randbytes(400)
    yield "gzip", b"\x1f\x8b\x08\x00" + rng.randbytes(200)
    yield "HTML", b"<!doctype html><html><body>404 not found</body></html>"
    yield "git conflict", data[:half] + b"\n<<<<<<< HEAD\n=======\n>>>>>>> main\n" + data[half:]
    yield "one long line", b"a" * 300_000
    yield "deep brackets", b"[" * 200_000
    yield "deep braces", b'{"a":' * 100_000
    flipped = bytearray(data)
    for _ in range(3):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    yield "flipped bits", bytes(flipped)
    lines = data.split(b"\n")
    rng.shuffle(lines)
    yield "shuffled lines", b"\n".join(lines)


# ---- data


def _places(value: Any, here: tuple = ()) -> Iterator[tuple]:
    """Yield every position in a tree, as the keys that lead there."""
    yield here
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(inner, (*here, key))


def data_of(rng: random.Random, value: Any, count: int) -> Iterator[tuple[str, Any]]:
    """Return (description, tree) with one change: another value, removed, renamed, duplicated,
    nested.
    """
    everywhere = [place for place in _places(value) if place]
    for _ in range(count):
        place = rng.choice(everywhere)
        tree = json.loads(json.dumps(value))
        parent = tree
        for key in place[:-1]:
            parent = parent[key]
        key = place[-1]
        name = "/".join(map(str, place))
        what = rng.choice(["odd", "odd", "odd", "odd", "gone", "renamed", "wrapped", "deep"])
        if what == "odd":
            parent[key] = rng.choice(ODD)
            name += f" = {parent[key]!r}"[:60]
        elif what == "gone":
            del parent[key]
        elif what == "renamed" and isinstance(parent, dict):
            parent[rng.choice([f"{key}s", key.upper(), "", "\0", "x" * 300])] = parent.pop(key)
        elif what == "deep":
            parent[key] = deep(900)
        else:
            parent[key] = [parent[key]]
        yield f"{what}: {name}", tree


def json_of(rng: random.Random, value: Any, count: int) -> Iterator[tuple[str, bytes]]:
    """Return (description, content) of JSON with one change, and of invalid JSON."""
    for name, tree in data_of(rng, value, count):
        yield name, json.dumps(tree).encode()
    for odd in ODD:
        yield f"all of it = {odd!r}"[:60], json.dumps(odd).encode()
    yield "a number of 5000 digits", b"9" * 5000
    yield "a number of 5000 digits inside", json.dumps(value).encode().replace(b"1", b"9" * 5000)


# ---- YAML


def yaml_of(rng: random.Random, text: str, keys: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (description, text) of a preset with keys that are unknown, of another type, duplicate,
    too deep, or expansion bombs.
    """
    key, other = rng.sample(keys, 2)
    section, _, leaf = key.partition(".")
    yield "unknown section", text + "\nslep: {steps: 1}\n"
    yield f"unknown key {key}x", f"{text}\n{section}x: {{{leaf}: 1}}\n"
    yield "a duplicate section", text + "\nrun: {name: a}\nrun: {name: b}\n"
    yield "a section that is a list", "sleep: [1, 2]\n"
    yield "keys that are no text", "1: 2\n[a, b]: c\n"
    yield "the merge key", "<<: {run: {name: a}}\n"
    yield (
        "aliases that grow",
        "a: &a [x,x]\n" + "".join(f"b{i}: &b{i} [*b{i - 1},*b{i - 1}]\n" for i in range(1, 40)),
    )
    yield "a tag that calls", 'run: {name: !!python/object/apply:os.system ["touch pwned"]}\n'
    yield "two documents", text + "\n---\nrun: {name: a}\n"
    yield "a list", "[1, 2, 3]\n"
    yield "a text", "just words\n"
    yield "tabs for spaces", text + "\nrun:\n\tname: a\n"
    yield "an open bracket", text + "\nmodel: {chunks: [1, 2\n"
    yield "an open quote", text + '\nrun: {name: "a\n'
    yield "include of nothing", text + "\ninclude: [none.yaml]\n"
    yield "include that is a number", "include: 3\n"
    yield "include of a folder", "include: [.]\n"
    yield "include of /dev/zero", "include: [/dev/zero]\n"
    yield "include above the root", "include: [" + "../" * 50 + "etc/passwd]\n"
    yield "deep mapping", "".join("  " * i + "a:\n" for i in range(300))
    yield "deep flow", "rollouts: {engine: " + "{a: " * 400 + "1" + "}" * 401 + "\n"
    yield "many keys", "".join(f"k{i}: 1\n" for i in range(500))
    yield "a long key", "x" * 20_000 + ": 1\n"
    yield "a long value", f"run: {{name: {'x' * 20_000}}}\n"
    for name in (
        "../x",
        "a/b",
        "..",
        ".",
        "-rf",
        "a\\0b",
        "~root",
        "a b",
        "🦙",
        "CON",
        "x" * 300,
        "$(touch pwned)",
        "%2e%2e",
    ):
        yield (
            f"run.name {name[:20]}",
            re.sub(r"^run:.*$", lambda _, name=name: f'run: {{name: "{name}"}}', text, flags=re.M),
        )
    yield f"{key} dotted", f"{key}: {other}\n"


def overrides_of(
    rng: random.Random, keys: list[str], count: int
) -> Iterator[tuple[str, list[str]]]:
    """Return (description, overrides) with an unusual value of a key."""
    words = [
        ".nan",
        "-.inf",
        ".inf",
        "1e309",
        "-1",
        "0",
        "1e30",
        "9" * 40,
        "9" * 5000,
        "0x10",
        "010",
        "1_000",
        "null",
        "~",
        "true",
        "off",
        '""',
        "' '",
        "[]",
        "{}",
        "[1, 2]",
        "{a: 1}",
        "[[[[1]]]]",
        "..",
        "/",
        "../../x",
        "/dev/null",
        "/dev/zero",
        "~/x",
        "x" * 3000,
        "🦙",
        '"\\0"',
        '"\\ud800"',
        "*a",
        "&a 1",
        "!!int 1",
        "! x",
        "{",
        "]",
        "a: b: c",
        "- a",
        "1e-320",
        "2",
        "100000",
        "1000000000",
        "0.5",
        "file:///etc/passwd",
        "http://u:p4ssw0rd@h/",
        "${HOME}",
        "`id`",
        "\x1b[2J",
        "\r\n",
    ]
    for _ in range(count):
        given = [
            f"{rng.choice(keys)}={rng.choice(words)}" for _ in range(rng.choice([1, 1, 1, 2, 5]))
        ]
        if rng.random() < 0.1:
            given.append(
                rng.choice(
                    [
                        "=",
                        "a",
                        "a=",
                        ".=1",
                        "a..b=1",
                        "run=1",
                        "run.=1",
                        ".run=1",
                        "run.name.x=1",
                        "\0=1",
                        " =1",
                    ]
                )
            )
        yield " ".join(given)[:80], given
