"""File formats and row forms of documents; unreadable ones are left out."""

import json
import sys

import pytest

from sleep_rl.contracts.errors import InputError
from sleep_rl.tasks.documents import conversion
from sleep_rl.tasks.documents.sources import scan
from tests.fakes.office import docx, pdf, pptx

WHERE = "task.documents.path"
FILES = {
    "ferry.pdf": (
        pdf("The ferry leaves at nine.", "It comes back at ten."),
        "The ferry leaves at nine.\n\n\nIt comes back at ten.",
    ),
    "bees.docx": (docx("Ann keeps", "two bees &amp; a dög."), "Ann keeps\n\ntwo bees & a dög."),
    "tea.pptx": (pptx("Bob sells tea."), "Bob sells tea."),
    "page.html": (
        "<html><head><title>no</title><script>no()</script><style>no</style></head>"
        "<body><h1>Köln</h1><p>A <b>big</b> town.</p></body></html>".encode(),
        "# Köln\n\nA **big** town.",
    ),
    "old.HTM": (
        "<meta charset='iso-8859-1'><p>Grüße aus Köln</p>".encode("latin-1"),
        "Grüße aus Köln",
    ),
    "table.csv": (
        "\ufeffname,town\r\nAnn,Köln\r\n".encode(),
        "| name | town |\n| --- | --- |\n| Ann | Köln |",
    ),
    "notes.markdown": ("# Büro".encode(), "# Büro"),
    "notes.rst": (b"Title\n=====\n\n* one", "Title\n=====\n\n* one"),
}
DAMAGED = {
    "damaged.docx": (b"no zip file", "no readable docx file (File is not a zip file)"),
    "damaged.pdf": (pdf("A town.")[:120], "no readable pdf file ("),
    "damaged.pptx": (docx("A town."), "no readable pptx file ("),
    "latin.csv": ("Köln,1\n".encode("latin-1"), "expected UTF-8, got another"),
    "latin.html": (
        "<p>Köln</p>".encode("latin-1"),
        "expected UTF-8 or a declared encoding, got another",
    ),
    "other.html": (b"<meta charset='none-such'>\xff", "expected UTF-8 or a declared encoding"),
    "latin.txt": ("Köln".encode("latin-1"), "expected UTF-8 text, got another encoding at byte 1"),
    "zero.md": (b"a\0b", "expected text, got a NUL character"),
    "rows.jsonl": (b'{"text": "sound"}\n{"text": ', "line 2: expected a JSON object, got "),
    "rows.parquet": (b"PAR1", "no readable parquet file ("),
    "scan.png": (
        b"\x89PNG",
        "expected one of txt, md, markdown, rst, jsonl, parquet, html, htm, csv, pdf, docx, pptx",
    ),
}
"""Name -> (content, beginning of the reason)."""


def filled(folder, files):
    folder.mkdir(exist_ok=True)
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    return str(folder)


@pytest.fixture(autouse=True)
def nothing_converted_yet(monkeypatch):
    monkeypatch.setattr(conversion, "_texts", {})


def without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "markitdown", None)


def test_file_formats(tmp_path):
    found = scan(filled(tmp_path, FILES), WHERE)
    texts = {source.name: source.text.strip() for source in found.sources}
    assert texts == {name: text for name, (_, text) in FILES.items()} and found.left_out == {}
    for name, (_, text) in FILES.items():
        [alone] = scan(str(tmp_path / name), WHERE).sources
        assert (alone.name, alone.text.strip()) == (name, text)


def test_missing_extra_is_named(tmp_path, monkeypatch):
    without_the_extra(monkeypatch)
    found = scan(filled(tmp_path, FILES), WHERE)
    assert [source.name for source in found.sources] == ["notes.markdown", "notes.rst"]
    assert found.left_out == {
        name: f"{(tmp_path / name).suffix.lower()} needs the extra `formats`: "
        "pip install -e '.[formats]'"
        for name in FILES
        if not name.startswith("notes")
    }
    with pytest.raises(InputError, match=r"ferry.pdf: .pdf needs the extra `formats`"):
        scan(str(tmp_path / "ferry.pdf"), WHERE)


def test_unreadable_files_are_named_and_left_out(tmp_path):
    filled(tmp_path, DAMAGED)
    filled(tmp_path, {"sound.docx": FILES["bees.docx"]})
    (tmp_path / "questions.jsonl").write_text("no json, and no document")
    (tmp_path / "link.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "blank.docx").write_bytes(docx())
    found = scan(str(tmp_path), WHERE)
    assert [source.name for source in found.sources] == ["sound.docx"]
    reasons = {
        **{name: reason for name, (_, reason) in DAMAGED.items()},
        "link.txt": "cannot be read (No such file or directory)",
        "blank.docx": "empty",
    }
    assert found.left_out.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert found.left_out[name].startswith(reason) and "\n" not in found.left_out[name], name


def test_folder_without_readable_documents_is_an_error(tmp_path):
    filled(tmp_path, DAMAGED)
    with pytest.raises(InputError) as error:
        scan(str(tmp_path), WHERE)
    assert str(error.value).startswith(
        f"{WHERE}: at least one document that is not empty, got none in {tmp_path} (damaged.docx: "
        "no readable docx file (File is not a zip file); damaged.pdf: "
    )
    assert str(error.value).endswith(f"; and {len(DAMAGED) - 3} more)")
    assert "\n" not in str(error.value)


ROWS = {
    "the first column with a text": ({"text": " ", "content": "x", "body": "y"}, "x"),
    "no text in any": ({"text": "", "content": None}, ""),
    "a chat": (
        {
            "messages": [
                {"role": "system", "content": "Be kind. "},
                {"role": "user", "content": "Who keeps bees?"},
                {"role": "assistant", "content": None, "tool_calls": []},
                {"role": "assistant", "content": [{"type": "text", "text": "Ann."}, {"url": "x"}]},
            ]
        },
        "System: Be kind.\n\nUser: Who keeps bees?\n\nAssistant: Ann.",
    ),
    "an empty chat": ({"messages": []}, ""),
    "a chat beside an empty text": (
        {"text": "", "messages": [{"role": "user", "content": "Hi"}]},
        "User: Hi",
    ),
    "prompt and completion": ({"prompt": "Who?", "completion": "Ann."}, "Who?\nAnn."),
    "with white space between": (
        {"prompt": "Bees are", "completion": " small."},
        "Bees are small.",
    ),
    "an empty prompt": ({"prompt": "", "completion": "Ann."}, "Ann."),
    "both as chats": (
        {
            "prompt": [{"role": "user", "content": "Who?"}],
            "completion": [{"role": "assistant", "content": "Ann."}],
        },
        "User: Who?\n\nAssistant: Ann.",
    ),
}


@pytest.mark.parametrize("name", ["jsonl", "parquet", "saved"])
def test_row_formats(tmp_path, name):
    import datasets

    texts = {label: text for label, (_, text) in ROWS.items()}
    rows = [{"id": label, **row} for label, (row, _) in ROWS.items()]
    if name == "jsonl":
        (tmp_path / name).with_suffix(".jsonl").write_text("\n".join(map(json.dumps, rows)))
        path = tmp_path / "jsonl.jsonl"
        prefix = "jsonl.jsonl#"
    else:
        # columns have one type: without the forms that share a column with another
        rows = [row for row in rows if row["id"] not in ("a chat", "both as chats")]
        made = datasets.Dataset.from_list(
            [
                {key: row.get(key) for key in dict.fromkeys(k for r in rows for k in r)}
                for row in rows
            ]
        )
        path = tmp_path / "saved"
        prefix = "saved#"
        if name == "parquet":
            path = tmp_path / "rows.parquet"
            prefix = "rows.parquet#"
            made.to_parquet(str(path))
        else:
            made.save_to_disk(str(path))
    found = scan(str(path), WHERE)
    assert {s.name.removeprefix(prefix): s.text for s in found.sources} == {
        row["id"]: texts[row["id"]] for row in rows if texts[row["id"]]
    }
    assert found.left_out == {prefix + row["id"]: "empty" for row in rows if not texts[row["id"]]}


@pytest.mark.parametrize(
    "row, reason",
    [
        (
            {"txt": "x"},
            "expected a text in text, content, document, body, or messages, or prompt "
            "and completion, got txt",
        ),
        (
            {},
            "expected a text in text, content, document, body, or messages, or prompt and "
            "completion, got none",
        ),
        (
            {"prompt": "x"},
            "expected a text in text, content, document, body, or messages, or prompt "
            "and completion, got prompt",
        ),
        ({"messages": ["hi"]}, "message 1: expected role and content, got 'hi'"),
        (
            {"messages": [{"role": "user", "content": 3}]},
            "message 1: expected role and content, got",
        ),
        ({"messages": [{"content": "x"}]}, "message 1: expected role and content, got"),
        ({"text": "a\0b"}, "expected text, got a NUL character"),
        ({"text": "a\ud800b"}, "expected text, got half of a surrogate pair"),
    ],
)
def test_invalid_row_is_named(tmp_path, row, reason):
    (tmp_path / "rows.jsonl").write_text('{"text": "sound"}\n' + json.dumps(row))
    (tmp_path / "sound.txt").write_text("sound")
    found = scan(str(tmp_path), WHERE)
    assert [source.name for source in found.sources] == ["sound.txt"]
    assert found.left_out["rows.jsonl"].startswith(f"row 2: {reason}")


def test_row_without_id_is_named_by_digest(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": " ", "text": "x"}\n{"id": null, "text": "y"}')
    (tmp_path / "more.jsonl").write_text('{"text": "x "}\n{"text": "z"}')
    found = scan(str(tmp_path), WHERE)
    names = [source.name for source in found.sources]
    assert len(set(names)) == 3 and all(len(name.partition("#")[2]) == 8 for name in names)
