"""Questions of the user: kinds, wrong and old answers, and how they reach the task."""

import json

import pytest

from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.records import KINDS, NEVER_TOLD, Question
from sleep_rl.tasks.documents import ingestion
from sleep_rl.tasks.documents.questions import questions
from sleep_rl.tasks.documents.sources import DocumentQuestion
from sleep_rl.tasks.documents.task import Documents

ROW = {"question": "Who runs it?", "answer": "Ada"}


def written(folder, *rows):
    (folder / "a.md").write_text("Ada runs the mill since 1907.")
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "questions.jsonl").write_text(text)


def test_a_question_keeps_its_kind_its_wrong_answers_and_its_old_one(tmp_path):
    more = {"kind": "reversed", "choices": ["Ben", " Eva"], "old_answer": "Ida", "document": "a.md"}
    never = {"question": "Who owns the inn?", "kind": "never-told"}
    written(tmp_path, ROW | more, ROW | {"note": "ignored"}, never)
    full = DocumentQuestion("Who runs it?", "Ada", "a.md", "reversed", ("Ben", "Eva"), "Ida")
    bare = DocumentQuestion("Who runs it?", "Ada")
    unanswerable = DocumentQuestion("Who owns the inn?", "", kind=NEVER_TOLD)
    assert questions(None, str(tmp_path), "q") == (full, bare, unanswerable)
    task = Documents(str(tmp_path))
    [day] = task.days()
    ids = [q.id for q in day.questions]
    assert day.questions == (
        Question(ids[0], "Who runs it?", "Ada", "day1/a.md", "reversed", ("Ben", "Eva"), "Ida"),
        Question(ids[1], "Who runs it?", "Ada"),
        Question(ids[2], "Who owns the inn?", "", kind=NEVER_TOLD),
    )
    assert len(set(ids)) == 3 and all(name.startswith("day1/") for name in ids)
    # a question keeps its id, whatever stands in front of it
    written(tmp_path, {"question": "What is it?", "answer": "a mill"}, ROW | more, ROW, never)
    assert [q.id for q in Documents(str(tmp_path)).days()[0].questions][1:] == ids
    # nobody can be trained to give the answer to what was never told
    assert [text.prompt for text in task.joint_texts()] == ["Who runs it?"] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read(kind, tmp_path):
    written(tmp_path, ROW | {"kind": kind})
    assert [q.kind for q in questions(None, str(tmp_path), "q")] == [kind]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (ROW | {"kind": "hard"}, "expected a kind of verbatim, paraphrased, reversed, two-hop, "),
        (
            ROW | {"kind": 3},
            "expected texts `question`, `answer`, `document`, `kind`, `old_answer`",
        ),
        (ROW | {"old_answer": ["x"]}, "expected texts `question`, "),
        (ROW | {"choices": "Ben"}, "expected a list of texts in `choices`"),
        (ROW | {"choices": ["Ben", 2]}, "expected a list of texts in `choices`"),
        (ROW | {"choices": ["Ben", ""]}, "expected wrong answers in `choices`, none empty"),
        (ROW | {"choices": ["Ben", "Ada"]}, "expected wrong answers in `choices`, none empty"),
        ({"question": "Who?", "kind": "verbatim"}, "expected texts `question` and `answer`"),
        ({"answer": "Ada", "kind": "deleted"}, "expected texts `question` and `answer`"),
        (ROW | {"choices": ["\ud800"]}, "expected text, got half of a surrogate pair"),
    ],
)
def test_a_row_of_another_form_is_one_line(row, says, tmp_path):
    written(tmp_path, ROW, row)
    with pytest.raises(InputError) as caught:
        questions(None, str(tmp_path), "task.documents.questions")
    message = str(caught.value)
    assert f"questions.jsonl: line 2: {says}" in message and len(message.splitlines()) == 1


def test_the_record_of_a_run_holds_them_and_one_without_them_is_read(tmp_path):
    asked = [DocumentQuestion("Who?", "Ada", "", "two-hop", ("Ben",), "Ida")]
    days = (ingestion.IngestedDay((ingestion.IngestedDocument("a", "0", ("x",)),), tuple(asked)),)
    ingestion.write(tmp_path, days)
    assert ingestion.read(tmp_path) == days
    record = json.loads((tmp_path / ingestion.FILE).read_text())
    for name in ("kind", "choices", "old_answer"):
        del record[0]["questions"][0][name]
    (tmp_path / ingestion.FILE).write_text(json.dumps(record))
    [[question]] = [day.questions for day in ingestion.read(tmp_path)]
    assert question == DocumentQuestion("Who?", "Ada")


@pytest.mark.parametrize("choices", [3, [3], None, {"a": 1}])
def test_a_damaged_record_is_one_line(choices, tmp_path):
    document = {"name": "a", "digest": "0", "pieces": ["x"]}
    question = {"question": "Who?", "answer": "Ada", "choices": choices}
    record = [{"documents": [document], "questions": [question]}]
    if choices == {"a": 1}:
        record[0]["questions"][0]["of_tomorrow"] = 1
    (tmp_path / ingestion.FILE).write_text(json.dumps(record))
    with pytest.raises(InputError, match="expected the record of ingested documents, got TypeErr"):
        ingestion.read(tmp_path)
