"""What stands in context: retrieved documents, gold ones, all that fit; and who is asked."""

from dataclasses import replace

import pytest

from sleep_rl.config.schema import Config
from sleep_rl.contracts.records import CHECKPOINT, TEACHER, Day, Document
from sleep_rl.driver.evaluation import ask_before_night, evaluate
from sleep_rl.driver.measures.contexts import fitting, log_contexts
from sleep_rl.journal.journal import read
from sleep_rl.tasks.documents import ingestion
from sleep_rl.tasks.documents.sources import Source
from sleep_rl.tasks.documents.task import Documents
from sleep_rl.text.retrieval import TOP, Retriever
from tests.fakes.configs import changed
from tests.fakes.reader import BOUGHT, Purchases, reading_run

LAMPS = [
    Document("a", "The lighthouse of Skerry was opened in 1907."),
    Document("b", "The ferry to Skerry leaves at noon; the ferry is green."),
    Document("c", "Keeper Ada Holm lived in the lighthouse, and Ada painted it."),
    Document("d", "Nothing of that kind."),
]


def test_the_best_documents_share_rare_words_with_the_question():
    retriever = Retriever(LAMPS)
    assert [d.id for d in retriever.best("When was the lighthouse opened?")][:1] == ["a"]
    assert [d.id for d in retriever.best("What colour is the FERRY?")][:1] == ["b"]
    assert [d.id for d in retriever.best("Ada's lighthouse")] == ["c", "a"]
    assert retriever.best("Wer?") == [] and retriever.best("???") == []
    assert len(retriever.best("the lighthouse of Skerry, the ferry and nothing")) == TOP
    assert [d.id for d in Retriever([Document("x", "***")]).best("***")] == []


def test_documents_stand_in_context_as_far_as_they_fit(tmp_path):
    run = reading_run(tmp_path)
    sizes = [len(run.codec.ids(d.text + "\n\n")) for d in LAMPS]
    assert fitting(run, LAMPS, sum(sizes)).text == "\n\n".join(d.text for d in LAMPS)
    assert fitting(run, LAMPS, sum(sizes) - 1).text == "\n\n".join(d.text for d in LAMPS[:3])
    assert fitting(run, LAMPS, sizes[0] - 1) is None and fitting(run, [], 99) is None


def lived(folder, config=None, knows=None):
    """The records of two days' evaluations; the crew."""
    run = reading_run(folder, config, knows)
    answered = []
    for night, day in enumerate(run.task.days(), start=1):
        answered.append(ask_before_night(run, day, night))
        evaluate(run, after=f"night {night}", lived=night, answered=answered)
    return run, read(folder / "metrics.jsonl")


def newest(records):
    return {r["context"]: r for r in records if r["kind"] == "context" and r["after"] == "night 2"}


def test_every_context_has_its_row_for_every_day(tmp_path):
    run, records = lived(tmp_path, knows={TEACHER: ["Alice Thorne"]})
    rows = {name: r["row"] for name, r in newest(records).items()}
    assert rows == {
        "closed": {"day1": 0.0, "day2": 0.0},
        "gold": {"day1": 1.0, "day2": 1.0},
        "retrieval": {"day1": 1.0, "day2": 1.0},
        "all": {"day1": 1.0, "day2": 1.0},
        "memory+retrieval": {"day1": 1.0, "day2": 1.0},
    }
    tokens = {name: r["prompt_tokens"] for name, r in newest(records).items()}
    assert tokens["closed"] < tokens["gold"] <= tokens["retrieval"] < tokens["all"]
    assert tokens["memory+retrieval"] == tokens["retrieval"]
    [closed, gold] = (newest(records)[name] for name in ("closed", "gold"))
    assert closed["choice"]["all days"] == 0.0 and gold["choice"]["all days"] == 1.0
    assert closed["nll"]["all days"] == pytest.approx(10 * gold["nll"]["all days"])
    assert closed["n"]["day1"] == gold["n"]["day2"] == 4
    opened = [r["open_book"] for r in records if r["kind"] == "evaluate" and r["open_book"]]
    assert opened == [{"day1": 1.0}, {"day2": 1.0}]
    assert run.crew.caches_dropped >= 2 * 2 + 2 * 3  # each context was read with empty caches


def test_the_untouched_base_answers_and_is_asked_about_a_day_once(tmp_path):
    """The sleeping model answers closed book and with retrieval only."""
    run, _ = lived(tmp_path)
    text = "What did Alice Thorne buy?"
    by_base = [t for name, t in run.crew.asked if name == CHECKPOINT and text in t]
    closed = [t for t in by_base if "Document:" not in t]
    one = [t for t in by_base if "Document:" in t and "Edgar" not in t]
    # the gold document once, and after both nights the same one by retrieval
    assert len(closed) == 1 and len(one) == 1 + 2
    with_documents = [t for n, t in run.crew.asked if n == TEACHER and "Document:" in t]
    assert len(with_documents) == 4 + 8  # memory+retrieval: a night's questions so far
    everything = [t for n, t in run.crew.asked if n == CHECKPOINT and all(w in t for w in BOUGHT)]
    # the newest day's documents come first
    assert everything and all(t.index("Ruth Abel") < t.index("Edgar Pike") for t in everything)


@pytest.mark.parametrize(
    ("chosen", "asked"),
    [
        ([], set()),
        (["gold"], {"gold"}),
        (["retrieval"], {"retrieval"}),
        (["closed", "memory+retrieval"], {"closed", "memory+retrieval"}),
    ],
)
def test_only_the_chosen_contexts_are_asked(chosen, asked, tmp_path):
    config = changed(Config(), evaluate={"contexts": chosen})
    _, records = lived(tmp_path, config)
    assert set(newest(records)) == asked


def test_the_gates_half_is_asked_in_no_context(tmp_path):
    config = changed(Config(), evaluate={"max_drop": 0.5})
    run, records = lived(tmp_path, config)
    counts = {r["n"].get("day1", 0) for r in newest(records).values()}
    [reported] = counts
    last = [r for r in records if r["kind"] == "evaluate" and r["row"]][-1]
    assert last["n"]["day1"] == reported < 4 and last["held_out_row"]["day1"] == 0.0
    del run


def test_answers_of_the_base_follow_a_question_to_another_day(tmp_path):
    """As when its document is corrected; a question that is no longer asked is left out."""
    run = reading_run(tmp_path)
    one, two = run.task.days()
    answered = [ask_before_night(run, one, 1), ask_before_night(run, two, 2)]
    moved = replace(two, questions=(*two.questions, one.questions[0]))
    days = [replace(one, questions=one.questions[1:2]), moved]
    log_contexts(run, "night 2", days, TEACHER, answered)
    rows = newest(read(tmp_path / "metrics.jsonl"))
    counts = [{name: rows[c]["n"][name] for name in ("day1", "day2")} for c in rows]
    assert counts == [{"day1": 1, "day2": 5}] * 5 and rows["gold"]["row"] == dict(
        day1=1.0, day2=1.0
    )


def ingested(*days):
    so_far = ()
    for sources in days:
        so_far = ingestion.next_day(
            so_far, [Source(*s) for s in sources], [], 8, lambda text: len(text.split())
        )
    return so_far


def test_a_document_is_found_whole_and_in_its_newest_version(tmp_path):
    first = [("a.md", "one two three four five.\n\nsix seven eight nine ten."), ("b.md", "old b")]
    ingestion.write(tmp_path, ingested(first, [("b.md", "new b"), ("c.md", "c")]))
    task = Documents("nowhere", record=str(tmp_path))
    one, two = task.days()
    assert [d.id for d in task.whole("day1/a.md")] == ["day1/a.md", "day1/a.md/2"]
    whole = [d.text for d in task.whole("day1/a.md")]
    assert whole == ["a\n\none two three four five.", "six seven eight nine ten."]
    assert [d.text for d in task.current([one], whole=True)][:2] == whole
    assert task.current([one])[1].text == "a, part 2 of 2\n\nsix seven eight nine ten."
    assert [d.id for d in task.current([one])] == ["day1/a.md", "day1/a.md/2", "day1/b.md"]
    both = [d.id for d in task.current([one, two])]
    assert both == ["day2/b.md", "day2/c.md", "day1/a.md", "day1/a.md/2"]


class InPieces(Purchases):
    """Every document comes in two pieces, of which the second says what was bought."""

    def _day(self, number, people):
        day = super()._day(number, people)
        firsts = tuple(Document(d.id, f"About a person, {number}.") for d in day.documents)
        self.seconds = {d.id: Document(f"{d.id}/2", d.text) for d in day.documents}
        return Day(day.name, (*firsts, *self.seconds.values()), day.questions)

    def whole(self, document):
        return Document(document, "About a person."), self.seconds[document]

    def current(self, days, *, whole=False):
        return tuple(d for day in days for d in day.documents)


def test_the_gold_document_is_read_with_all_its_pieces(tmp_path):
    run = reading_run(tmp_path, task=InPieces())
    ask_before_night(run, run.task.days()[1], 2)
    opened = [r["open_book"] for r in read(tmp_path / "metrics.jsonl") if r["kind"] == "evaluate"]
    assert opened == [{"day2": 1.0}]
