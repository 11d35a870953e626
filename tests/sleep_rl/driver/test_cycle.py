"""The driver with a fake crew that records and checks all calls."""

import math
from dataclasses import replace

import pytest

from sleep_rl.config.evaluation import Baselines, Evaluate
from sleep_rl.config.method import Wake
from sleep_rl.config.schema import Model
from sleep_rl.contracts.records import TEACHER
from sleep_rl.driver.retention_check import BEFORE
from sleep_rl.report.page import write_report
from sleep_rl.session.console import Console
from tests.fakes.configs import changed
from tests.fakes.crew import CONFIG, Crew, Forgetful, live_life, sampled_ids
from tests.fakes.teachers import Taught
from tests.fakes.texts import DAYS, Diary
from tests.fakes.undocumented import undocumented


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    return live_life(CONFIG, tmp_path_factory.mktemp("lived"))


def test_order_of_calls_with_two_levels(lived):
    """C = (1, 2): level 1 is consolidated into level 2 in nights 2, 3 and 4, each time before it
    receives the day; level 2 has no receiver, and its base expert is updated every second night.
    """
    crew, _ = lived
    protocol = crew.protocol
    for at, entry in enumerate(protocol):
        # yesterday's documents are gone
        assert entry[0] != "wake" or at == 0 or protocol[at - 1] == ("drop_caches",)
    assert [entry for entry in protocol if entry != ("drop_caches",)] == [
        ("wake", 1),
        ("open", 1, (1,)),
        ("close", 1),
        ("wake", 1),
        ("open", 2, (1, 2)),
        ("close", 2),
        ("open", 1, ()),
        ("close", 1),
        ("wake", 1),
        ("open", 2, (1,)),
        ("close", 2),
        ("open", 1, ()),
        ("close", 1),
        ("wake", 1),
        ("open", 2, (1, 2)),
        ("close", 2),
        ("open", 1, ()),
        ("close", 1),
    ]


def test_wake_lr_zero_skips_wake_updates(tmp_path):
    crew, records = live_life(replace(CONFIG, wake=Wake(lr=0.0)), tmp_path)
    assert "wake" not in {entry[0] for entry in crew.protocol} | {r["kind"] for r in records}
    assert "open book" in write_report(tmp_path).read_text()


def test_teacher_rehearses_prompts_of_past_nights(lived):
    crew, records = lived
    by_teacher = {
        (receiver, word) for receiver, name, word in crew.rehearsed if name == TEACHER and receiver
    }
    # never of the night itself
    assert by_teacher == {(2, "1"), (1, "1"), (2, "2"), (1, "2"), (2, "3"), (1, "3")}
    written = [r for r in records if r["kind"] == "written"]
    assert [(r["night"], r["sender"], r["new"], r["rehearsed"], r["prompts"]) for r in written] == [
        (1, 0, 2, 0, 0),
        (2, 1, 2, 20, 1),
        (2, 0, 2, 20, 1),
        (3, 1, 2, 20, 2),
        (3, 0, 2, 20, 2),
        (4, 1, 2, 20, 3),
        (4, 0, 2, 20, 3),
    ]
    assert undocumented(records) == []


class Author(Crew):
    """A crew that samples synthetic documents from bos, and answers about each with its word."""

    def check_batch(self, batch_N, step, steps):
        rows = [r for r in batch_N if r.prompt_T == (1,) and not r.teacher_T]
        read = [self.texts.text(r.completion_T).split() for r in rows]
        assert {r.temperature for r in rows} == {0.5}
        own = [words for words in read if words[:1] == ["dusk"]]
        assert len(own) == CONFIG.reading.rows  # none of the day's documents stands in front
        assert all(words[3] == words[-1] for words in own)
        assert not any("day" in self.texts.text(r.prompt_T).split() for r in batch_N)

    def sample(self, requests_N, name, how):
        opener = self.texts.opener
        if requests_N and requests_N[0].prompt_T == (1,):  # half of what it begins is a document
            assert (
                how.stop_T == (2, opener[0])
                and how.max_tokens == len(["day", "1", "was", "w1"])
                and name == TEACHER
            )
            bodies = [
                self.texts.ids(f"dusk {n} was v{n}") * (n % 2) + opener[:1]
                for n in range(len(requests_N))
            ]
            return [sampled_ids(r, name, ids) for r, ids in zip(requests_N, bodies, strict=True)]
        return super().sample(requests_N, name, how)


def test_reading_rows_on_synthetic_documents(tmp_path):
    config = changed(CONFIG, reading={"synthetic_documents": 10}, rehearsal={"temperature": 0.5})
    _, records = live_life(config, tmp_path, Author)
    written = [r for r in records if r["kind"] == "written"]
    assert [(r["sender"], r["new"], r["read"]) for r in written] == [(0, 2, 5)] + [
        (1, 0, 5),
        (0, 2, 5),
    ] * (DAYS - 1)


def test_excessive_drop_rolls_the_night_back(tmp_path):
    config = replace(CONFIG, evaluate=Evaluate(max_drop=0.5))
    crew, records = live_life(config, tmp_path, Forgetful)
    assert [entry for entry in crew.protocol if entry[0] in ("save", "use")] == [
        ("save", "night-2-rejected"),
        ("use", BEFORE),
    ]
    [rolled] = [r for r in records if r["kind"] == "rolled_back"]
    assert (
        rolled["night"],
        rolled["column"],
        rolled["before"],
        rolled["after"],
        rolled["allowed"],
    ) == (2, "known", 1, 0, 0.5)
    rows = [
        r["row"]["known"]
        for r in records
        if r["kind"] == "evaluate" and r["row"] and r["after"] == "night 2"
    ]
    assert rows == [0.0, 1.0]  # the table takes the last one: what holds
    # nothing of the lost night
    assert {word for receiver, name, word in crew.rehearsed if name == TEACHER and receiver} == {
        "1",
        "3",
    }
    assert undocumented(records) == []


def test_allowed_drop_keeps_the_night(tmp_path):
    crew, records = live_life(replace(CONFIG, evaluate=Evaluate(max_drop=1.0)), tmp_path, Forgetful)
    assert not [entry for entry in crew.protocol if entry[0] in ("save", "use")]
    assert not [r for r in records if r["kind"] == "rolled_back"]


def test_teachers_are_seeded_in_night_0(tmp_path):
    config = changed(
        CONFIG,
        model=Model(chunks=[1], experts=5, teachers=["a", "b"]),
        objective={"on_policy": 0.5},
        sleep={"steps": 6},
    )
    crew, records = live_life(config, tmp_path, Taught)
    assert [entry for entry in crew.protocol if entry != ("drop_caches",)][:6] == [
        ("start teachers",),
        ("open", 1, ()),
        ("close", 1),
        ("stop teachers",),
        ("wake", 1),
        ("open", 1, (1,)),
    ]
    first = next(r for r in records if r["kind"] == "written")
    # 6 by each of the two, and 6 by the smaller self
    assert (first["night"], first["new"], first["unconditional"]) == (0, 12, 6)
    assert set(crew.taught[: 6 * 8]) == {0, 1, 2} and set(crew.taught[6 * 8 :]) == {0}
    assert [r["after"] for r in records if r["kind"] == "evaluate" and r["row"]][:3] == [
        "base",
        "night 0",
        "night 1",
    ]
    assert config.most_experts(DAYS) == [5] and config.schedule(DAYS)[0].night == 0
    assert undocumented(records) == []


def test_run_without_questions_writes_a_report(tmp_path, capsys):
    """As for task documents without questions: the retention matrix is empty."""

    class Silent(Diary):
        def days(self):
            return tuple(replace(day, questions=()) for day in super().days())

        def known(self):
            return ()

    config = replace(CONFIG, baselines=Baselines(run=[]))
    _, records = live_life(config, tmp_path, task=Silent(), console=Console())
    assert [
        r["row"]
        for r in records
        if r["kind"] == "evaluate" and r["method"] == "sleep" and r["open_book"] is None
    ] == [{}] * (DAYS + 1)
    assert "open book, " not in capsys.readouterr().out
    assert "No evaluation after a night yet" in write_report(tmp_path).read_text()


def test_unconditional_prompts_are_rehearsed(tmp_path):
    """The crew samples a different prompt each time; the most frequent ones are indexed."""
    config = changed(CONFIG, rehearsal={"unconditional_prompts": 3})
    _, records = live_life(config, tmp_path)
    prompts = [r["prompts"] for r in records if r["kind"] == "written"]
    assert prompts[0] == 0 and prompts[1] == 1 + 3  # of the day, and of what came from nothing
    assert (
        prompts == sorted(prompts)
        and prompts[2] == prompts[1] + 3
        and prompts[3] == prompts[2] + 1 + 3
    )


def test_rehearsal_temperature(tmp_path):
    asked = set()
    learned = set()

    class Sharp(Crew):
        def check_requests(self, requests_N, name, how):
            if name == TEACHER and how.max_tokens == self.texts.task.max_new_tokens:
                asked.update(
                    (bool(r.prompt_T[len(self.texts.opener) :]), how.temperature)
                    for r in requests_N
                )
            super().check_requests(requests_N, name, how)

        def check_batch(self, batch_N, step, steps):
            learned.update(row.temperature for row in batch_N)
            super().check_batch(batch_N, step, steps)

    config = changed(CONFIG, rehearsal={"temperature": 0.5}, generation={"temperature": 0.9})
    live_life(config, tmp_path, Sharp)
    assert asked == {(False, 0.9), (True, 0.5)} and learned == {1.0, 0.5}


def test_prompts_with_low_confidence_are_not_indexed(tmp_path):
    """The crew's answers have log-probability -1 per token."""
    for least, kept in ((math.exp(-2.1), True), (math.exp(-1.9), False)):  # word and eos
        folder = tmp_path / str(kept)
        folder.mkdir()
        config = changed(CONFIG, rehearsal={"unconditional_prompts": 3, "min_confidence": least})
        _, records = live_life(config, folder)
        assert all(
            (r["prompts"] > 0) == (kept and r["night"] > 1)
            for r in records
            if r["kind"] == "written"
        )


def test_student_samples_begin_after_the_off_policy_steps(tmp_path):
    """The first two of four steps, in rounds of one, train on teacher sequences only."""
    sampled = {}

    class Counting(Crew):
        def check_batch(self, batch_N, step, steps):
            super().check_batch(batch_N, step, steps)
            sampled.setdefault(step, set()).add(any(row.behaviour_T for row in batch_N))

    config = changed(
        CONFIG,
        sleep={"steps": 4, "steps_per_round": 1},
        model={"chunks": [1], "experts": 4},
        objective={"off_policy_first": 0.5},
    )
    live_life(config, tmp_path, Counting)
    assert sampled == {0: {False}, 1: {False}, 2: {True}, 3: {True}}
