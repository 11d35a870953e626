"""Which documents are new, changed, renamed, deleted or forgotten, and their questions."""

import json
import shutil

import pytest

from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.records import Superseded
from sleep_rl.tasks.documents import ingestion
from sleep_rl.tasks.documents.task import Documents
from tests.fakes.living import EXAMPLE, ingest


@pytest.fixture
def folder(tmp_path):
    """A folder of two documents, with a question about each."""
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "a.txt").write_text("The lamp of Skerry is green.")
    (folder / "b.txt").write_text("The ferry to Skerry is red.")
    ask(
        folder, ("Which colour has the lamp?", "green", "a.txt"), ("And the ferry?", "red", "b.txt")
    )
    return folder


def ask(folder, *rows):
    names = ("question", "answer", "document")
    lines = (json.dumps(dict(zip(names, row, strict=True))) for row in rows)
    (folder / "questions.jsonl").write_text("\n".join(lines))


def tasks_days(days, tmp_path):
    record = tmp_path / "record"
    record.mkdir(exist_ok=True)
    ingestion.write(record, days)
    assert ingestion.read(record) == days
    return Documents("", record=str(record)).days()


def test_the_example_has_a_changed_and_a_deleted_document(tmp_path):
    days = ingest(ingest((), EXAMPLE / "day1"), EXAMPLE / "day2")
    assert ingestion.summary_line(days) == (
        "day 2: 2 new and 1 changed documents in 3 pieces, 20 questions, deleted: events.md"
    )
    first, second = tasks_days(days, tmp_path)
    assert first.superseded == ()
    assert second.superseded == (
        Superseded("people.md", ("day1/people.md",), ("day2/people.md",)),
        Superseded("events.md", ("day1/events.md",)),
    )
    task = Documents("", record=str(tmp_path / "record"))
    after_one = {d.id for d in task.current(task.days()[:1])}
    after_two = {d.id for d in task.current(task.days())}
    assert {"day1/events.md", "day1/people.md"} <= after_one
    assert after_one - after_two == {"day1/events.md", "day1/people.md"}
    assert after_two - after_one == {"day2/people.md", "day2/garden.md", "day2/school.md"}


def test_a_file_that_is_gone_is_deleted_and_its_question_asks_for_the_old_answer(folder, tmp_path):
    first = ingest((), folder)
    (folder / "a.txt").unlink()
    days = ingest(first, folder)
    assert days[1].deleted == ("a.txt",) and days[1].documents == ()
    assert ingest(days, folder) == days
    one, two = tasks_days(days, tmp_path)
    assert [q.prompt for q in one.questions] == ["And the ferry?"]
    [gone] = two.questions
    assert (gone.kind, gone.answer, gone.old_answer) == ("deleted", "", "green")
    # it comes back as new, and its question with it
    (folder / "a.txt").write_text("The lamp of Skerry is green.")
    again = ingest(days, folder)
    assert [d.name for d in again[2].documents] == ["a.txt"] and again[2].deleted == ()
    *_, three = tasks_days(again, tmp_path)
    assert three.superseded == ()
    assert [(q.answer, q.document) for q in three.questions] == [("green", "day3/a.txt")]


def test_a_text_that_returns_to_what_it_was_is_a_change(folder, tmp_path):
    days = ingest((), folder)
    text = (folder / "a.txt").read_text()
    for changed in ("The lamp of Skerry is blue.", text):
        (folder / "a.txt").write_text(changed)
        days = ingest(days, folder)
        assert ingest(days, folder) == days
    found = [day.superseded for day in tasks_days(days, tmp_path)]
    assert found == [
        (),
        (Superseded("a.txt", ("day1/a.txt",), ("day2/a.txt",)),),
        (Superseded("a.txt", ("day2/a.txt",), ("day3/a.txt",)),),
    ]


def test_a_corrected_answer_makes_the_former_one_the_old_answer(folder, tmp_path):
    days = ingest((), folder)
    (folder / "a.txt").write_text("The lamp of Skerry is blue.")
    ask(
        folder,
        ("Which colour has the lamp?", "blue", "a.txt"),
        ("And the ferry?", "scarlet", "b.txt"),
    )
    days = ingest(days, folder)
    (folder / "c.txt").write_text("The pier of Skerry is white.")
    days = ingest(days, folder)  # it stays so on later days
    one, two, _ = tasks_days(days, tmp_path)
    assert [(q.answer, q.old_answer) for q in two.questions] == [("blue", "green")]
    # the document is the same: the user corrected the answer, not the document
    assert [(q.answer, q.old_answer) for q in one.questions] == [("scarlet", "")]


def test_what_is_renamed_or_unreadable_or_elsewhere_is_not_deleted(folder, tmp_path):
    first = ingest((), folder)
    (folder / "a.txt").rename(folder / "other.txt")
    assert ingest(first, folder) == first
    (folder / "b.txt").write_bytes(b"\xff\xfe\xff")
    (folder / "c.txt").write_text("The pier of Skerry is white.")
    assert ingest(first, folder)[1].deleted == ()
    # another folder, without one of the documents so far
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "d.txt").write_text("The dog of Skerry is old.")
    shutil.copy(folder / "questions.jsonl", elsewhere)
    assert ingest(first, elsewhere)[1].deleted == ()


def test_a_file_deletes_rows_of_its_own_only(folder):
    rows = folder / "rows.jsonl"
    rows.write_text('{"id": 1, "text": "Rope is hemp."}\n{"id": 2, "text": "Sails are linen."}')
    first = ingest((), folder)
    rows.write_text('{"id": 2, "text": "Sails are linen."}')
    days = ingest(first, rows)
    assert days[1].deleted == ("rows.jsonl#1",)
    (folder / "a.txt").write_text("The lamp of Skerry is blue.")
    assert ingest(first, folder / "a.txt")[1].deleted == ()


def test_a_forgotten_document_is_taken_in_again_when_it_changes(folder, tmp_path):
    first = ingest((), folder)
    days = ingestion.forget(first, "a.txt")
    assert list(days[1].forgotten) == ["a.txt"] and days[1].documents == ()
    assert ingestion.summary_line(days).endswith("1 questions, forgotten: a.txt")
    assert ingestion.forget(days, "a.txt") == days
    assert ingest(days, folder) == days  # its file is still there
    one, two = tasks_days(days, tmp_path)
    assert two.superseded == (Superseded("a.txt", ("day1/a.txt",)),)
    assert [(q.kind, q.old_answer) for q in two.questions] == [("deleted", "green")]
    assert len(one.questions) == 1
    (folder / "a.txt").write_text("The lamp of Skerry is blue.")
    assert [d.name for d in ingest(days, folder)[2].documents] == ["a.txt"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("b.tx", r"forget: a document of the run, got 'b.tx'; did you mean b.txt\?"),
        ("zzzzzz", r"forget: a document of the run, got 'zzzzzz' \(a.txt, b.txt\)"),
    ],
)
def test_an_unknown_document_is_one_line(folder, name, line):
    with pytest.raises(InputError, match=line):
        ingestion.forget(ingest((), folder), name)
