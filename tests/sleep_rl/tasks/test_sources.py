"""Reading, filtering and splitting the user's documents, and ingesting the new ones as a day."""

import json

import pytest

from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.tasks.documents import ingestion
from sleep_rl.tasks.documents.sources import DocumentQuestion, Source, pieces, questions, scan

WHERE = "task.documents.path"


def words(text):
    return len(text.split())


def names(found):
    return [s.name for s in found.sources]


def test_a_folder_is_read_with_everything_in_it_that_is_a_document(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.txt").write_text("hidden")
    (tmp_path / "b.md").write_bytes("\ufeff# Büro".encode())
    (tmp_path / "deep" / "a.TXT").write_text("deep down")
    (tmp_path / "rows.jsonl").write_text('{"id": 7, "text": "seven"}\n\n{"content": "no id"}\n')
    (tmp_path / "questions.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    (tmp_path / "scan.pdf").write_bytes(b"%PDF")
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
        "scan.pdf": "no txt, md, jsonl or parquet file",
        "empty.txt": "empty",
        "deep/a.TXT": "the same text as copy.txt",
    }


def test_one_file_a_parquet_file_and_a_saved_dataset(tmp_path):
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
        ("a.txt", b"\xff\xfeh\0i\0", "UTF-8 text, got another encoding in {path} at byte 0"),
        ("a.txt", b"a\0b", "UTF-8 text, got a NUL character in {path}"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "one JSON object per line, got {path} line 2"),
        ("a.jsonl", b'["x"]', "one JSON object per line, got list in {path} line 1"),
        (
            "a.jsonl",
            b'{"txt": "x"}',
            "rows with a text in one of text, content, document, body, got txt in a.jsonl row 1",
        ),
        ("a.parquet", b"PAR1", "a parquet file, got {path}: "),
        ("a.pdf", b"%PDF", "a txt, md, jsonl or parquet file, got {path}"),
        ("a.txt", b"  ", "at least one document that is not empty, got none in {path}"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, file, content, what):
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        scan(str(path), WHERE)
    line = str(error.value)
    assert line.startswith(f"{WHERE}: " + what.format(path=path)) and "\n" not in line


def test_a_place_that_is_not_there_and_one_without_documents(tmp_path):
    with pytest.raises(InputError, match="a hub name, got /nowhere/at all: no such file"):
        scan("/nowhere/at all", WHERE)
    with pytest.raises(InputError, match="at least one document that is not empty, got none"):
        scan(str(tmp_path), WHERE)


def test_pieces_are_cut_at_the_best_places_and_hold_every_word_once():
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


def test_questions_stand_beside_the_documents_or_in_a_file_of_their_own(tmp_path):
    assert questions(None, str(tmp_path), "q") == ()
    (tmp_path / "questions.jsonl").write_text(
        '{"question": " Who? ", "answer": "me", "document": "a.txt"}\n'
    )
    assert questions(None, str(tmp_path), "q") == (DocumentQuestion("Who?", "me", "a.txt"),)
    other = tmp_path / "other.jsonl"
    other.write_text('{"question": "What?", "answer": ""}')
    with pytest.raises(InputError, match=r"other.jsonl line 1: texts `question` and `answer`"):
        questions(str(other), str(tmp_path), "q")
    with pytest.raises(InputError, match=r"cannot read .*none.jsonl"):
        questions(str(tmp_path / "none.jsonl"), str(tmp_path), "q")


def test_the_next_day_brings_what_is_new_or_changed_and_moves_its_questions():
    a, b = Source("a.txt", "one two three"), Source("b.txt", "four")
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
    changed, c = Source("a.txt", "one and only"), Source("c.txt", "five")
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


def test_the_record_is_replaced_whole_and_a_damaged_one_is_named(tmp_path, monkeypatch):
    assert ingestion.read(tmp_path) == ()
    days = ingestion.next_day(
        (), [Source("a.txt", "Ä one")], [DocumentQuestion("a?", "1")], 9, words
    )
    ingestion.write(tmp_path, days)
    assert ingestion.read(tmp_path) == days
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
