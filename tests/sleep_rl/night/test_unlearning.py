"""Changed and deleted documents: what is trained on their old prompts, and what is rehearsed."""

import shutil
from pathlib import Path

import pytest

from sleep_rl.contracts.records import TEACHER, UNTOUCHED_BASE, Day, Document, Superseded
from sleep_rl.journal.journal import read
from sleep_rl.night.unlearning import Successor, _Pieces, successors, superseded_prompts
from sleep_rl.tasks.documents import ingestion
from sleep_rl.text.codec import PromptCodec
from tests.fakes.crew import Killed
from tests.fakes.living import ASKS, CONFIG, EXAMPLE, UNKNOWN, ingest, live_days
from tests.fakes.processes import DIFFERENT
from tests.fakes.texts import Natural
from tests.fakes.tokenizers import chat_tokenizer

CHANGED = "people.md"
DELETED = "events.md"
TIMES = {*DIFFERENT, "answer_seconds"}


@pytest.fixture(scope="module")
def days():
    first = ingest((), EXAMPLE / "day1")
    return ingest(first, EXAMPLE / "day2")


@pytest.fixture(scope="module")
def life(days, tmp_path_factory):
    """Return (index after the first night, crew and run of the second day's process, records). The
    folder `first` beside the run's is a copy of it after the first night.
    """
    folder = tmp_path_factory.mktemp("living") / "run"
    _, before = live_days(folder, days[:1])
    shutil.copytree(folder, folder.with_name("first"))
    crew, run = live_days(folder, days)
    return before.index, crew, run, read(folder / "metrics.jsonl")


def prompts_about(index, document):
    return [x for x, name in index.documents.items() if name == document]


def rows_of(crew, night, prompts):
    """Return the rows of a night on the teacher's own sequences with these prompts x."""
    return [
        row
        for nights, row in crew.rows
        if nights == night - 1 and any(row.completion_T[: len(x)] == x for x in prompts)
    ]


def test_prompts_about_a_changed_document_are_answered_by_its_new_text(life):
    index, crew, run, _ = life
    prompts = prompts_about(index, f"day1/{CHANGED}")
    assert len(prompts) > 2
    [new] = [d for d in run.task.days()[1].documents if d.id == f"day2/{CHANGED}"]
    rows = [r for r in rows_of(crew, 2, prompts) if r.prompt_T == run.codec.bare]
    assert rows
    for row in rows:
        assert row.teacher == 0 and not row.replay
        assert row.teacher_T == run.codec.context(new)
        question, answer = said(run, row)
        beginning = question.removeprefix(ASKS).rstrip("?")
        [line] = [line for line in new.text.split("\n") if line.startswith(beginning)] or [""]
        assert answer == (line.removeprefix(beginning).strip() or UNKNOWN)


def said(run, row):
    x_T = row.completion_T[: row.x_length]
    y_T = row.completion_T[row.x_length :]
    return run.codec.asked(x_T), run.codec.text(y_T).strip()


def test_prompts_about_a_deleted_document_are_answered_by_the_untouched_base(life):
    index, crew, run, _ = life
    prompts = prompts_about(index, f"day1/{DELETED}")
    rows = rows_of(crew, 2, prompts)
    assert len(prompts) > 2 and rows
    for row in rows:
        assert row.teacher == UNTOUCHED_BASE
        assert row.prompt_T == run.codec.bare and row.teacher_T in ((), row.prompt_T)
        assert said(run, row)[1] == UNKNOWN
    # the student's own continuations are held against the base, too
    sampled = [row for _, row in crew.rows if row.behaviour_T and row.teacher == UNTOUCHED_BASE]
    assert sampled and all(row.prompt_T == row.teacher_T for row in sampled)
    assert not [row for nights, row in crew.rows if nights == 0 and row.teacher]


def test_no_prompt_of_the_old_text_is_rehearsed(life):
    index, crew, run, _ = life
    old = {x for name in (CHANGED, DELETED) for x in prompts_about(index, f"day1/{name}")}
    bare = run.codec.context(None)
    answered = [
        request.prompt_T
        for nights, name, request in crew.requests
        if nights == 1 and name == TEACHER and request.context_T == bare
    ]
    kept = set(index.documents) - old
    assert kept and kept <= set(answered) and not old & set(answered)
    rehearsed = [row for row in rows_of(crew, 2, old) if row.prompt_T == bare and row.replay]
    assert rehearsed == []


def test_the_index_knows_the_new_documents_only(life):
    index, _, run, _ = life
    old = prompts_about(index, f"day1/{CHANGED}")
    assert set(old) <= set(prompts_about(run.index, f"day2/{CHANGED}"))
    gone = prompts_about(index, f"day1/{DELETED}")
    assert not set(gone) & set(run.index.prompts)
    known = {document for document in run.index.documents.values()}
    assert not {f"day1/{CHANGED}", f"day1/{DELETED}"} & known
    assert set(run.index.documents) <= set(run.index.prompts)


def test_the_journal_says_what_was_unlearned_and_how_well(life):
    index, _, _, records = life
    first, second = (r for r in records if r["kind"] == "written")
    assert "changed" not in first and "deleted" not in first
    counts = {name: len(prompts_about(index, f"day1/{name}")) for name in (CHANGED, DELETED)}
    assert second["changed"] == {CHANGED: [counts[CHANGED]] * 2}
    assert second["deleted"] == {DELETED: [counts[DELETED]] * 2}
    given = {(r["night"], r["when"]): r for r in records if r["kind"] == "old_answers"}
    assert set(given) == {(2, "before"), (2, "after")}
    assert given[2, "before"]["shares"] == {"corrected": 1.0, "deleted": 1.0}
    assert given[2, "after"]["shares"] == {"corrected": 0.0, "deleted": 0.0}
    assert given[2, "after"]["n"] == {"corrected": 6, "deleted": 4}


@pytest.mark.parametrize("at", [0.35, 0.7, 0.9])
def test_a_run_that_is_killed_resumes_to_the_same_result(at, days, life, tmp_path):
    def records(folder):
        return [
            {key: value for key, value in record.items() if key not in TIMES}
            for record in read(folder / "metrics.jsonl")
        ]

    _, crew, run, _ = life
    whole = Path(run.folder)
    cut = tmp_path / "cut"
    shutil.copytree(whole.with_name("first"), cut)
    with pytest.raises(Killed):
        live_days(cut, days, int(at * crew.calls))
    resumed, again = live_days(cut, days)
    assert resumed.weights == crew.weights
    assert again.index.state() == run.index.state()
    assert records(cut) == records(whole)


def test_a_day_may_only_forget_a_document(days, tmp_path):
    """`sleep-rl forget`: a night without new documents, whose questions become deleted ones."""
    _, before = live_days(tmp_path, days)
    crew, run = live_days(tmp_path, ingestion.forget(days, "vessel.md"))
    prompts = prompts_about(before.index, "day1/vessel.md")
    rows = rows_of(crew, 3, prompts)
    assert rows and {row.teacher for row in rows} == {UNTOUCHED_BASE}
    assert not set(prompts) & set(run.index.prompts)
    [given] = [
        r["n"]
        for r in read(tmp_path / "metrics.jsonl")
        if r["kind"] == "old_answers" and r["night"] == 3 and r["when"] == "after"
    ]
    about = [q for q in before.task.days()[0].questions if q.document == "day1/vessel.md"]
    assert given == {"deleted": len(about)} and len(about) >= 5
    assert "day1/vessel.md" not in {d.id for d in run.task.current(run.task.days())}


def test_a_document_that_changes_again_has_its_newest_successor():
    def day(*superseded):
        return Day("", (), (), superseded)

    days = [
        day(),
        day(Superseded("a", ("1/a", "1/a/2"), ("2/a",)), Superseded("b", ("1/b",))),
        day(Superseded("a", ("2/a",), ("3/a", "3/a/2"))),
        day(Superseded("a", ("3/a", "3/a/2"))),
    ]
    gone = Successor("b", ())
    assert successors(days[:1]) == {}
    assert successors(days[:2]) == dict.fromkeys(("1/a", "1/a/2"), Successor("a", ("2/a",))) | {
        "1/b": gone
    }
    assert successors(days[:3])["1/a"] == Successor("a", ("3/a", "3/a/2"))
    assert successors(days[:3])["2/a"] == Successor("a", ("3/a", "3/a/2"))
    assert set(successors(days).values()) == {Successor("a", ()), gone}
    assert CONFIG.replay.share < 1


def test_a_night_that_was_rolled_back_is_made_up_for(days, tmp_path):
    """Its prompts are about the old text again, and the next night unlearns them."""
    _, before = live_days(tmp_path, days[:1])
    old = before.index.state()
    gone = {x for name in (CHANGED, DELETED) for x in prompts_about(before.index, f"day1/{name}")}
    _, run = live_days(tmp_path, days)
    run.index.roll_back(2)  # as retention_check.roll_back does
    assert sorted(run.index.state()["documents"]) == sorted(old["documents"])
    assert set(superseded_prompts(run, 2)) == gone and set(superseded_prompts(run, 1)) == set()


@pytest.mark.parametrize("form", ["chat", "raw"])
def test_the_question_of_a_prompt_is_read_back(form):
    codec = PromptCodec(Natural(), chat_tokenizer(), form)
    for question in (
        "Who was there?",
        "Complete this: the lamp of Skerry",
        "Wo war „Käthe“?\nSag.",
    ):
        x_T = codec.form.question(question)
        assert codec.asked(x_T) == question
        assert codec.form.question(codec.asked(x_T)) == x_T


def test_the_new_piece_that_fits_the_question_is_read(tmp_path):
    pieces = ("The lamp of Skerry is green. " * 3, "The ferry to Skerry is red. " * 3)
    documents = tuple(Document(f"2/a/{n}", text) for n, text in enumerate(pieces))
    found = _Pieces([Day("day2", documents, ())])
    ids = tuple(document.id for document in documents)
    assert found.best(ids, "Which colour has the ferry?") == documents[1]
    assert found.best(ids, "Wer?") == documents[0]  # no word in common
    assert found.best(ids[1:], "Which colour has the lamp?") == documents[1]
    assert found.best((), "Which colour has the lamp?") is None
