"""Dreaming with a fake crew that records and checks all calls, also killed and resumed at any
step.
"""

import json
from dataclasses import replace

import pytest

from sleep_rl.config.schema import Evaluate, Rollouts
from sleep_rl.contracts.errors import Failure, InputError
from sleep_rl.contracts.records import HARD_TARGET
from sleep_rl.contracts.roles import Dreamer
from sleep_rl.dreaming.dream import DREAMER
from sleep_rl.driver.retention_check import BEFORE
from sleep_rl.journal.journal import read
from sleep_rl.text.codec import PromptCodec
from tests.fakes.configs import changed
from tests.fakes.crew import CONFIG, Killed, live_from_checkpoint, live_life
from tests.fakes.dreaming import DreamDiary, DreamingCrew
from tests.fakes.texts import Diary, Words
from tests.fakes.undocumented import undocumented

LIVED = changed(
    CONFIG,
    task={"days": 3},
    model={"chunks": [1], "experts": 6},
    dream={
        "rounds": 2,
        "tasks": 2,
        "dreams_per_task": 6,
        "keep_top": 2,
        "keep_random": 1,
        "steps": 3,
        "policy": {"lr": 0.01, "batch": 2},
    },
)


def dreamed(folder, config=LIVED, make=DreamingCrew, task=DreamDiary, **how):
    """Return (crew, records) of a life with dreaming."""
    return live_life(config, folder, make, task=task(), **how)


def test_fake_task_implements_dreamer():
    assert isinstance(DreamDiary(), Dreamer) and not isinstance(Diary(), Dreamer)


def test_dreams_are_generated_selected_tried_and_learned(tmp_path):
    crew, records = dreamed(tmp_path)

    def of(kind):
        return [r for r in records if r["kind"] == kind]

    rounds = of("dreamed")
    assert [(r["night"], r["round"], r["written"]) for r in rounds] == [
        (1, 1, 6),
        (1, 2, 6),
        (2, 1, 12),
        (2, 2, 12),
        (3, 1, 12),
        (3, 2, 12),
    ]
    assert all(r["kept"] == 3 * r["written"] // 6 for r in rounds)
    dreams = of("dream")
    assert len(dreams) == 60 and {d["reason"] for d in dreams if not d["kept"]} >= {
        "it asks and answers nothing",
        "no eos token",
    }
    for d in dreams:
        right = "never" not in d["text"]
        if d["kept"]:
            assert (d["tau_before"], d["taus"], d["reward"], d["gain"], d["held_out"]) == (
                0.0,
                [float(right)] * 3,
                int(right),
                float(right),
                float(right),
            )
        else:
            assert d["reward"] is None and d["taus"] == []
    # per i of a round's m, new random experts
    assert len({(d["night"], d["round"], d["expert_seed"]) for d in dreams}) == 36
    assert all(
        d["experts"] == {"model.layers.0.mlp.memory.0": d["expert_seed"] % 3 + 1} for d in dreams
    )
    [first, *_] = crew.trials
    # the un-updated model; 3 dreams, 3 + 1 seeds
    assert [t.rows for t in first[:1]] == [()] and len(first) == 1 + 3 * 4
    assert len({t.seed for t in first[1:]}) == 12 and {(t.lr, t.epochs) for t in first[1:]} == {
        (1e-3, 10)
    }
    good = [d for d in dreams if d["reward"]]
    assert good and rounds[0]["rewarded"] == sum(d["night"] == 1 and d["round"] == 1 for d in good)
    assert all(
        r["gain_rewarded"] in (1.0, None) and r["gain_held_out"] == r["gain_rewarded"]
        for r in rounds
    )
    learned = {crew.texts.text(r.completion_T) for r in crew.told}
    assert learned == {d["text"] for d in good}
    assert undocumented(records) == []
    lines = (tmp_path / "dreams" / "night-1-1.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    assert [(d["text"], d["context"]) for d in kept] == [
        (d["text"], "day 1 was w1") for d in dreams[:6]
    ]
    assert [r["deeper"] for r in of("evaluate") if r["row"]] == [{}, *[{"back": 0.0}] * 3]


def test_policy_starts_from_the_last_round_or_the_model(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    crew, _ = dreamed(tmp_path / "a")
    assert crew.policies == 6 and crew.state == "own"
    policy = crew.snapshots[DREAMER]
    assert policy.startswith(
        "policy 6 on policy 5 on graft of policy 4 on policy 3 on graft of "
        "policy 2 on policy 1 on own (next_or_newest)"
    )
    assert policy.count("reuse_newest") == 5
    crew, _ = dreamed(tmp_path / "b", changed(LIVED, dream={"policy": {"init": "base"}}))
    assert crew.snapshots[DREAMER] == "policy 6 on own (next_or_newest)"


@pytest.mark.parametrize(
    "change,gone",
    [
        ({"rounds": 0}, {"dream", "dreamed", "policy", "tried"}),
        ({"policy": {"epochs": 0}}, {"policy"}),
    ],
)
def test_parts_can_be_switched_off(tmp_path, change, gone):
    crew, records = dreamed(tmp_path, changed(LIVED, dream=change))
    assert not gone & {r["kind"] for r in records}
    assert crew.policies == 0 and bool(crew.told) == (change != {"rounds": 0})


class Losing(DreamingCrew):
    """The accuracy on the known drops in the second night, until that night is rolled back."""

    lost = False

    def open_night(self, receiver, due=(), slot="next"):
        super().open_night(receiver, due, slot)
        self.lost = sum(entry[0] == "wake" for entry in self.protocol) == 2

    def load_state(self, tag):
        super().load_state(tag)
        self.lost = self.lost and tag != BEFORE

    def answer(self, request, name):
        sample = super().answer(request, name)
        if "old ?" in self.texts.text(request.prompt_T) and name != DREAMER:
            ids = self.texts.ids("no" if self.lost else "yes") + self.texts.eos
            sample = replace(
                sample, completion_T=ids, logprobs_T=(-1.0,) * len(ids), versions_T=(1,) * len(ids)
            )
        return sample


def test_rollback_restores_the_policy(tmp_path):
    crew, records = dreamed(tmp_path, replace(LIVED, evaluate=Evaluate(max_drop=0.5)), make=Losing)
    assert [r["night"] for r in records if r["kind"] == "rolled_back"] == [2]
    policy = crew.snapshots[DREAMER]
    assert (
        "policy 3" not in policy
        and "policy 4" not in policy
        and policy.startswith("policy 6 on policy 5 on graft of policy 2")
    )


def test_too_long_texts_are_dropped(tmp_path):
    config = replace(LIVED, rollouts=Rollouts(engine={"max_model_len": 9}))
    _, records = dreamed(tmp_path, config)
    reasons = {r["reason"] for r in records if r["kind"] == "dream"}
    assert "no text fits into max_model_len = 9" in reasons and not any(
        r.get("kept") for r in records if r["kind"] == "dream"
    )


class Judge(DreamingCrew):
    """A crew whose critic fails one copy of each round of trials."""

    def try_out(self, trials_N, how):
        out = super().try_out(trials_N, how)
        return [*out[:-4], Failure("an adapter failed to load", "critic"), *out[-3:]]


def test_failed_copy_gives_a_dream_without_reward(tmp_path):
    _, records = dreamed(tmp_path, make=Judge)
    failed = [
        r for r in records if r["kind"] == "dream" and r["reason"] == "an adapter failed to load"
    ]
    assert failed and all(r["kept"] and r["reward"] is None and r["taus"] == [] for r in failed)
    assert {r["where"] for r in records if r["kind"] == "failure"} == {"critic", "dream"}


class Wrong(DreamDiary):
    def tau(self, task, answers):
        return float("nan")


def test_tau_outside_its_range_raises_input_error(tmp_path):
    with pytest.raises(InputError, match=r"^task day1/t: tau lies in \[0, 1\], got nan$"):
        dreamed(tmp_path, task=Wrong)


@pytest.fixture(scope="module")
def whole_life(tmp_path_factory):
    """Return the crew, records and folder of an uninterrupted run. Read-only."""
    folder = tmp_path_factory.mktemp("whole")
    return *dreamed(folder, checkpoints=True), folder


@pytest.mark.parametrize("step", ["generate", "select", "try_out", "train_policy", "learn"])
@pytest.mark.parametrize("call", [1, 3])
def test_run_killed_in_any_step_of_dreaming_resumes_to_the_same_result(
    tmp_path, whole_life, step, call
):
    whole, want, whole_folder = whole_life
    (tmp_path / "cut").mkdir()
    method = {
        "generate": "activate_random_expert",
        "select": "gradient_gram",
        "try_out": "try_out",
        "train_policy": "sft_step",
        "learn": "seed_step",
    }[step]

    calls = 0

    class Mortal(DreamingCrew):
        """Dies at call number `call` of the method."""

    def dying(self, *args, **kwargs):
        nonlocal calls
        if step != "learn" or any(r.teacher == HARD_TARGET for r in args[0]):
            calls += 1
            if calls == call:
                raise Killed
        return getattr(DreamingCrew, method)(self, *args, **kwargs)

    setattr(Mortal, method, dying)
    with pytest.raises(Killed):
        dreamed(tmp_path / "cut", make=Mortal, checkpoints=True)
    texts = PromptCodec(DreamDiary(), Words())
    # ids of words are those of the first life
    texts.tokenizer.ids = dict(whole.texts.tokenizer.ids)
    crew = live_from_checkpoint(DreamingCrew(texts), texts, LIVED, tmp_path / "cut").crew
    assert crew.snapshots == whole.snapshots and crew.state == whole.state

    def timeless(rows):
        return [{k: v for k, v in r.items() if k not in TIMES} for r in rows]

    assert timeless(read(tmp_path / "cut" / "metrics.jsonl")) == timeless(want)
    for file in (whole_folder / "dreams").iterdir():
        assert (tmp_path / "cut" / "dreams" / file.name).read_bytes() == file.read_bytes()


TIMES = (
    "t",
    "seconds",
    "tokens_per_second",
    "trained_s",
    "learner_waited_s",
    "rollouts_waited_s",
    "rewards_s",
    "learner_idle",
)
