"""Reading, filtering and splitting the user's documents, and ingesting the new ones as a day."""

import json
import os

import pytest

from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.tasks.documents import ingestion
from sleep_rl.tasks.documents.questions import questions
from sleep_rl.tasks.documents.reading import KINDS
from sleep_rl.tasks.documents.sources import DocumentQuestion, Source, scan
from sleep_rl.tasks.documents.splitting import pieces
from sleep_rl.tasks.documents.task import Documents

WHERE = "task.documents.path"
COMPOSED = "J\u00fcrgen"
DECOMPOSED = "Ju\u0308rgen"  # the same name as a Mac writes it


def words(text):
    return len(text.split())


def names(found):
    return [s.name for s in found.sources]


def test_folder_is_scanned_recursively(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.txt").write_text("hidden")
    (tmp_path / "b.md").write_bytes("\ufeff# Büro".encode())
    (tmp_path / "deep" / "a.TXT").write_text("deep down")
    (tmp_path / "rows.jsonl").write_text('{"id": 7, "text": "seven"}\n\n{"content": "no id"}\n')
    (tmp_path / "questions.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    (tmp_path / "scan.png").write_bytes(b"\x89PNG")
    (tmp_path / "copy.txt").write_text("deep down")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "circle").symlink_to(tmp_path)
    found = scan(str(tmp_path), WHERE)
    assert [(s.name, s.text) for s in found.sources] == [
        ("b.md", "# Büro"),
        ("copy.txt", "deep down"),
        ("rows.jsonl#7", "seven"),
        (f"rows.jsonl#{Source('', 'no id').digest[:8]}", "no id"),
    ]
    assert found.left_out == {
        "circle": "a link to a folder, which is not followed",
        "scan.png": f"expected one of {KINDS}",
        "empty.txt": "empty",
        "deep/a.TXT": "the same text as copy.txt",
    }


def test_single_files_and_datasets(tmp_path):
    import datasets

    rows = datasets.Dataset.from_dict({"text": ["one", "two"], "id": ["a", "b"]})
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    rows.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "splits"))
    assert names(scan(str(tmp_path / "rows.parquet"), WHERE)) == [
        "rows.parquet#a",
        "rows.parquet#b",
    ]
    assert names(scan(str(tmp_path / "saved"), WHERE)) == ["saved#a", "saved#b"]
    assert names(scan(str(tmp_path / "splits"), WHERE)) == ["splits#a", "splits#b"]


@pytest.mark.parametrize(
    "file, content, what",
    [
        ("a.txt", b"\xff\xfeh\0i\0", "expected UTF-8 text, got another encoding at byte 0"),
        ("a.txt", b"a\0b", "expected text, got a NUL character"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "line 2: expected a JSON object, got "),
        ("a.jsonl", b'["x"]', "line 1: expected a JSON object, got list"),
        ("a.jsonl", b'{"txt": "x"}', "row 1: expected a text in text, content, document, body"),
        ("a.parquet", b"PAR1", "no readable parquet file ("),
        ("a.png", b"\x89PNG", f"expected one of {KINDS}"),
    ],
)
def test_unreadable_input_gives_one_line_error(tmp_path, file, content, what):
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        scan(str(path), WHERE)
    line = str(error.value)
    assert line.startswith(f"{WHERE}: {path}: {what}") and "\n" not in line


def test_missing_path_and_empty_folder(tmp_path):
    with pytest.raises(InputError, match="a hub name, got /nowhere/at all: no such file"):
        scan("/nowhere/at all", WHERE)
    with pytest.raises(InputError, match=f"document that is not empty, got none in {tmp_path}$"):
        scan(str(tmp_path), WHERE)
    (tmp_path / "a.txt").write_text("  ")
    with pytest.raises(InputError, match=f"not empty, got none in {tmp_path} .a.txt: empty.$"):
        scan(str(tmp_path), WHERE)


def test_pieces_split_at_best_separators_and_keep_all_words():
    text = "One two. Three four five.\n\nSix seven.\nEight nine ten eleven twelve thirteen.\n\nEnd."
    assert pieces(text, 50, words) == [text]
    assert pieces(text, 7, words) == [
        "One two. Three four five.",
        "Six seven.",
        "Eight nine ten eleven twelve thirteen.\n\nEnd.",
    ]
    assert pieces(text, 4, words) == [
        "One two.",
        "Three four five.",
        "Six seven.",
        "Eight nine ten eleven",
        "twelve thirteen.\n\nEnd.",
    ]
    for most in range(1, 12):
        cut = pieces(text, most, words)
        assert all(words(piece) <= most for piece in cut) and " ".join(cut).split() == text.split()
    assert (
        "".join(pieces("x" * 100, 8, len)) == "x" * 100
        and max(map(len, pieces("x" * 100, 8, len))) <= 8
    )


def test_questions_file(tmp_path):
    assert questions(None, str(tmp_path), "q") == ()
    (tmp_path / "questions.jsonl").write_text(
        '{"question": " Who? ", "answer": "me", "document": "a.txt"}\n'
    )
    assert questions(None, str(tmp_path), "q") == (DocumentQuestion("Who?", "me", "a.txt"),)
    other = tmp_path / "other.jsonl"
    other.write_text('{"question": "What?", "answer": ""}')
    with pytest.raises(InputError, match=r"other.jsonl: line 1: expected texts `question` and"):
        questions(str(other), str(tmp_path), "q")
    with pytest.raises(InputError, match=r"none.jsonl: cannot be read .No such file"):
        questions(str(tmp_path / "none.jsonl"), str(tmp_path), "q")


def test_next_day_has_new_and_changed_documents_with_their_questions():
    a = Source("a.txt", "one two three")
    b = Source("b.txt", "four")
    asked = (
        DocumentQuestion("a?", "1", "a.txt"),
        DocumentQuestion("b?", "2", "b.txt"),
        DocumentQuestion("all?", "3"),
    )
    first = ingestion.next_day((), [a, b], asked, 2, words)
    assert [d.pieces for d in first[0].documents] == [("one two", "three"), ("four",)] and first[
        0
    ].questions == asked
    assert (
        ingestion.summary_line(first)
        == "day 1: 2 new and 0 changed documents in 3 pieces, 3 questions"
    )
    assert ingestion.next_day(first, [b, a], asked, 2, words) == first  # nothing new
    # known by its text
    assert ingestion.next_day(first, [Source("moved.txt", a.text)], asked, 2, words) == first
    changed = Source("a.txt", "one and only")
    c = Source("c.txt", "five")
    second = ingestion.next_day(
        first,
        [changed, b, c],
        (
            *asked,
            DocumentQuestion("c?", "5"),
        ),
        2,
        words,
    )
    assert [d.name for d in second[1].documents] == ["a.txt", "c.txt"]
    # a's old text is no longer what is asked asked
    assert [q.question for q in second[0].questions] == ["b?", "all?"]
    assert [q.question for q in second[1].questions] == ["a?", "c?"]
    assert (
        ingestion.summary_line(second)
        == "day 2: 1 new and 1 changed documents in 3 pieces, 2 questions"
    )
    with pytest.raises(InputError, match=r"names an ingested document .*, got 'd.txt'"):
        ingestion.next_day((), [a], [DocumentQuestion("d?", "6", "d.txt")], 2, words)


def test_record_is_replaced_atomically_and_damage_is_reported(tmp_path, monkeypatch):
    assert ingestion.read(tmp_path) == ()
    days = ingestion.next_day(
        (),
        [Source("a.txt", "Ä one")],
        [DocumentQuestion("a?", "1")],
        9,
        words,
        left_out={"b.pdf": "no pdf"},
    )
    ingestion.write(tmp_path, days)
    assert ingestion.read(tmp_path) == days and days[0].left_out == {"b.pdf": "no pdf"}
    assert json.loads((tmp_path / ingestion.FILE).read_text())[0]["documents"][0]["pieces"] == [
        "Ä one"
    ]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        RunError, match=r"documents.json: cannot be written .No space left on device."
    ):
        ingestion.write(tmp_path, (*days, *days))
    assert ingestion.read(tmp_path) == days
    (tmp_path / ingestion.FILE).write_text('[{"documents": [{}]}]')
    with pytest.raises(InputError, match="expected the record of ingested documents, got KeyError"):
        ingestion.read(tmp_path)


SEPARATORS_IN_STRINGS = "one\u2028two\u2029three\x85four"
"""Ends of lines for `str.splitlines`, and characters like any other for JSON."""


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_jsonl_line_ends(tmp_path, line_end):
    rows = [{"id": "a", "text": SEPARATORS_IN_STRINGS}, {"id": "b", "text": "two"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "rows.jsonl").write_bytes(line_end.join(["", *lines, ""]).encode())
    found = scan(str(tmp_path), WHERE)
    assert [(s.name, s.text) for s in found.sources] == [
        ("rows.jsonl#a", SEPARATORS_IN_STRINGS),
        ("rows.jsonl#b", "two"),
    ]
    asked = {"question": SEPARATORS_IN_STRINGS, "answer": "1\u20282"}
    line = json.dumps(asked, ensure_ascii=False)
    (tmp_path / "questions.jsonl").write_bytes((line + line_end + "{}").encode())
    with pytest.raises(InputError, match=r"questions.jsonl: line 2: expected texts"):
        questions(None, str(tmp_path), "q")
    (tmp_path / "questions.jsonl").write_bytes((line + line_end).encode())
    assert questions(None, str(tmp_path), "q") == (
        DocumentQuestion(SEPARATORS_IN_STRINGS, "1\u20282"),
    )


SAVED_ANEW = {
    "one newline more": "Nora lives\nin Köln.\n\nShe sings.\n",
    "another empty line": "Nora lives\nin Köln.\n\n\nShe sings.",
    "the line ends of Windows": "Nora lives\r\nin Köln.\r\n\r\nShe sings.",
    "those of old Macs": "Nora lives\rin Köln.\r\rShe sings.",
    "a byte order mark": "\ufeffNora lives\nin Köln.\n\nShe sings.",
    "wrapped anew": "Nora\nlives in Köln.\n\nShe  sings. ",
    "decomposed": "Nora lives\nin Ko\u0308ln.\n\nShe sings.",
}


@pytest.mark.parametrize("way", SAVED_ANEW)
def test_reformatted_document_is_not_new(tmp_path, way):
    (tmp_path / "a.txt").write_bytes("Nora lives\nin Köln.\n\nShe sings.".encode())
    first = ingestion.next_day((), scan(str(tmp_path), WHERE).sources, [], 50, words)
    (tmp_path / "a.txt").write_bytes(SAVED_ANEW[way].encode())
    assert ingestion.next_day(first, scan(str(tmp_path), WHERE).sources, [], 50, words) == first
    (tmp_path / "b.txt").write_bytes(SAVED_ANEW[way].encode())  # nor is a copy another document
    assert names(scan(str(tmp_path), WHERE)) == ["a.txt"]
    (tmp_path / "a.txt").write_bytes(SAVED_ANEW[way].replace("sings", "sang").encode())
    assert len(ingestion.next_day(first, scan(str(tmp_path), WHERE).sources, [], 50, words)) == 2


def test_reformatted_question_keeps_its_day():
    asked = [DocumentQuestion("Who lives in Köln?", "Jürgen")]
    first = ingestion.next_day((), [Source("a.txt", "one")], asked, 9, words)
    again = [DocumentQuestion("Who  lives in Ko\u0308ln?", "Ju\u0308rgen")]
    second = ingestion.next_day(first, [Source("b.txt", "two")], again, 9, words)
    assert [len(day.questions) for day in second] == [1, 0]


@pytest.mark.parametrize(
    "on_disk, named", [(DECOMPOSED, COMPOSED), (COMPOSED, DECOMPOSED), (COMPOSED, COMPOSED)]
)
def test_names_match_in_any_unicode_form(tmp_path, on_disk, named):
    folder = tmp_path / on_disk
    folder.mkdir()
    (folder / f"{on_disk}.txt").write_text("Nora sings.")
    row = {"question": "Who?", "answer": "Nora", "document": f"{named}.txt"}
    (folder / "questions.jsonl").write_text(json.dumps(row))
    given = str(tmp_path / named)
    found = scan(given, WHERE)
    first = ingestion.next_day((), found.sources, questions(None, given, "q"), 9, words)
    task = Documents(given)
    [day] = task.days()
    assert [q.document for q in day.questions] == [day.documents[0].id]
    alone = scan(f"{given}/{named}.txt", WHERE).sources
    assert [s.text for s in alone] == ["Nora sings."]
    # the changed file comes with its name in the other form
    changed = [Source(f"{named}.txt", "Nora sang.")]
    second = ingestion.next_day(first, changed, questions(None, given, "q"), 9, words)
    assert [len(day.questions) for day in second] == [0, 1]
    assert ingestion.summary_line(second).startswith("day 2: 0 new and 1 changed")


def test_names_of_different_unicode_forms_are_different_documents():
    sources = [Source(f"{name}.txt", text) for name, text in ((DECOMPOSED, "a"), (COMPOSED, "b"))]
    first = ingestion.next_day((), sources, [], 9, words)
    for name, text in ((DECOMPOSED, "c"), (COMPOSED, "d")):
        asked = [DocumentQuestion("?", "!", f"{name}.txt")]
        days = ingestion.next_day(first, [Source(f"{name}.txt", text)], asked, 9, words)
        assert [len(day.questions) for day in days] == [0, 1]
        other = [Source(f"{COMPOSED if name == DECOMPOSED else DECOMPOSED}.txt", text)]
        assert len(ingestion.next_day(first, other, asked, 9, words)[0].questions) == 1


def test_undecodable_name_is_escaped(tmp_path):
    documents = tmp_path / "documents"
    documents.mkdir()
    for name, content in ((b"\xfcber.txt", b"Nora sings."), (b"\xfc.png", b"")):
        with open(os.path.join(os.fsencode(documents), name), "wb") as file:
            file.write(content)
    found = scan(str(documents), WHERE)
    assert names(found) == [r"\xfcber.txt"] and list(found.left_out) == [r"\xfc.png"]
    days = ingestion.next_day((), found.sources, [], 9, words, left_out=found.left_out)
    ingestion.write(tmp_path, days)
    assert ingestion.read(tmp_path) == days
    assert names(scan(str(documents / os.fsdecode(b"\xfcber.txt")), WHERE)) == names(found)
