"""Dreaming with a fake crew that records and checks all calls, also killed and resumed at any
step.
"""

import json
import random
from dataclasses import replace

import pytest

from sleep_rl.config.schema import Evaluate, Rollouts
from sleep_rl.contracts.errors import Failure, InputError
from sleep_rl.contracts.records import (
    HARD_TARGET,
    STUDENT,
    DreamTask,
    Lesson,
    Question,
    TrainingText,
)
from sleep_rl.contracts.roles import Dreamer
from sleep_rl.dreaming.dream import DREAMER, SELF
from sleep_rl.driver.cycle import live
from sleep_rl.driver.retention_check import BEFORE
from sleep_rl.journal.journal import Journal, read
from sleep_rl.session.console import Console
from sleep_rl.session.context import RunContext
from sleep_rl.session.resumable import Progress
from sleep_rl.session.stage_files import newest
from sleep_rl.text.codec import PromptCodec
from tests.fakes.configs import changed
from tests.fakes.crew import CONFIG, Crew
from tests.fakes.texts import Diary, Words
from tests.fakes.undocumented import undocumented


class Deep(Diary):
    """A task whose dreams are questions with answers; a useful one has the day's word in a reversed
    question.
    """

    dream_opener = "D :"
    max_dream_tokens = 20

    def dream_tasks(self, day):
        [document] = day.documents
        return (DreamTask(f"{day.name}/t", day.name, document, self.deeper(day)["back"]),)

    def deeper(self, day):
        word = day.documents[0].text.split()[-1]
        return {
            "back": (
                Question(
                    f"{day.name}/b", f"Q : when was {word} ? A :", day.documents[0].text.split()[1]
                ),
            )
        }

    def lesson(self, task, dream):
        if "A :" not in dream:
            return Failure("it asks and answers nothing", "dream")
        return Lesson(
            tuple(
                TrainingText(f"Q : {q.strip()} A :", f" {a.strip()}")
                for q, a in [dream.split("A :")]
            )
        )

    def tau(self, task, answers):
        return sum(
            a.split() == [q.answer] for q, a in zip(task.questions, answers, strict=True)
        ) / len(answers)


class Dreaming(Crew):
    """A crew whose dreams are correct in every second case for the model, and always for the
    policy; one in seven has no lesson.
    """

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.state = "own"
        self.wandering = None
        self.pushed = {}
        self.policies = 0
        self.snapshots = {}
        self.told = []
        self.trials = []
        self.learn = self

    def activate_random_expert(self, seed):
        assert self.wandering is None and self.open is None
        self.wandering = seed
        return {"model.layers.0.mlp.memory.0": seed % 3 + 1}

    def discard_night(self):
        assert self.open is None and self.wandering is not None
        self.wandering = None

    def open_night(self, receiver, due=(), slot="next"):
        super().open_night(receiver, due)
        self.slot = slot

    def push(self, name, view):
        if name == DREAMER:
            assert view == STUDENT and self.wandering is not None
            self.pushed[name] = self.wandering, self.state
        super().push(name, view)

    def rebase_policy_expert(self, tag):
        assert tag == DREAMER and self.state == "own" and self.open is None
        self.state = self.snapshots[tag] = f"graft of {self.snapshots[tag]}"

    def save_state(self, tag, of=""):
        if of:
            self.snapshots[tag] = self.snapshots[of]
            return
        super().save_state(tag)
        if tag in (SELF, DREAMER):
            self.protocol.append(("keep", tag))
            self.snapshots[tag] = self.state

    def load_state(self, tag):
        super().load_state(tag)
        if tag in (SELF, DREAMER):
            self.protocol.append(("use", tag))
            self.state = self.snapshots[tag]

    def answer(self, request, name):
        asked = self.texts.text(request.prompt_T)
        if name != DREAMER:
            return super().answer(request, name)
        assert asked == "D :" and self.wandering is None  # the learner is back where it was
        wandering, state = self.pushed[DREAMER]
        day, word = self.texts.text(request.context_T).split()[1::2]
        rng = random.Random(f"{request.seed} {wandering}")
        if rng.random() < 1 / 7:
            words, reason = (
                ("just words", "stop")
                if rng.random() < 0.5
                else (f"when was {word} ? A : {day}", "length")
            )
        else:
            right = state != "own" or rng.random() < 0.5
            words = f"when was {word} ? A : {day if right else 'never'}"
            reason = "stop"
        return self.sampled(request, name, words, reason=reason, logprob=-0.5)

    def gradient_gram(self, texts_N, whole):
        assert not whole
        assert all(prompt == self.texts.bos + self.texts.ids("D :") for prompt, _ in texts_N[:-1])
        # C itself, last
        assert texts_N[-1][0] == self.texts.bos and texts_N[-1][1][-1:] == self.texts.eos
        size = len(texts_N)
        return [
            [float(len(texts_N[i][1]) * len(texts_N[j][1]) + (i == j)) for j in range(size)]
            for i in range(size)
        ]

    def try_out(self, trials_N, how):
        assert how.temperature == 0 and self.state == "own" and self.open is None
        self.trials.append(trials_N)
        out = []
        for trial in trials_N:
            (question,) = trial.questions
            told = {p: c for p, c in trial.rows}
            assert question[:1] == self.texts.bos
            out.append((told.get(question, self.texts.ids("unknown") + self.texts.eos),))
        return out

    def sft_step(self, batch_N, step, steps, peak=None):
        assert (
            self.open == 1
            and peak == 0.01
            and all(r.prompt_T[-2:] == self.texts.ids("D :") for r in batch_N)
        )
        assert all(len(r.prompt_T) > 3 for r in batch_N)  # C stands in front
        if step == steps - 1:
            self.policies += 1
            self.state = f"policy {self.policies} on {self.state} ({self.slot})"
        return {"loss": 1.0}

    def check_batch(self, batch_N, step, steps):
        told = [r for r in batch_N if r.teacher == HARD_TARGET]
        self.told += told
        if not told:
            return super().check_batch(batch_N, step, steps)
        assert steps == 3 and len(told) == 4 == sum(r.replay for r in batch_N)
        assert all(
            r.prompt_T == self.texts.context(None) + self.texts.opener and r.x_length for r in told
        )

    def save_checkpoint(self, path):
        with open(path, "w") as file:
            json.dump(
                {"state": self.state, "snapshots": self.snapshots, "policies": self.policies}, file
            )

    def load_checkpoint(self, path):
        with open(path) as file:
            kept = json.load(file)
        self.state = kept["state"]
        self.snapshots = kept["snapshots"]
        self.policies = kept["policies"]


LIVED = changed(
    CONFIG,
    run={"checkpoint_steps": 0},  # this crew resumes between two stages only
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


class Three(Deep):
    def days(self):
        return super().days()[:3]


def dreamed(tmp_path, config=LIVED, make=Dreaming, task=Three, progress=None, keep=None):
    texts = PromptCodec(task(), Words())
    crew = make(texts, [])
    journal = Journal(tmp_path / "metrics.jsonl", keep=keep)
    live(
        RunContext(
            crew,
            texts.task,
            texts,
            config,
            journal,
            Console(),
            str(tmp_path),
            progress=progress or Progress(),
        )
    )
    journal.close()
    return crew, read(tmp_path / "metrics.jsonl")


def test_fake_task_implements_dreamer():
    assert isinstance(Three(), Dreamer) and not isinstance(Diary(), Dreamer)


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


def test_a_rounds_policy_starts_from_the_last_rounds_and_the_first_from_the_model(tmp_path):
    crew, _ = dreamed(tmp_path)
    assert crew.policies == 6 and crew.state == "own"
    policy = crew.snapshots[DREAMER]
    assert policy.startswith(
        "policy 6 on policy 5 on graft of policy 4 on policy 3 on graft of "
        "policy 2 on policy 1 on own (next_or_newest)"
    )
    assert policy.count("reuse_newest") == 5


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


class Losing(Dreaming):
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


class Judge(Dreaming):
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


class Wrong(Three):
    def tau(self, task, answers):
        return float("nan")


def test_tau_outside_its_range_raises_input_error(tmp_path):
    with pytest.raises(InputError, match=r"^task day1/t: tau lies in \[0, 1\], got nan$"):
        dreamed(tmp_path, task=Wrong)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def whole_life(tmp_path_factory):
    """Return the crew, records and folder of an uninterrupted run. Read-only."""
    folder = tmp_path_factory.mktemp("whole")
    return *dreamed(folder, progress=Progress(str(folder))), folder


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

    class Mortal(Dreaming):
        calls = 0

        def _count(self):
            Mortal.calls += 1
            if Mortal.calls == call:
                raise Killed

    def dying(self, *args, **kwargs):
        if step != "learn" or any(r.teacher == HARD_TARGET for r in args[0]):
            self._count()
        return getattr(Dreaming, method)(self, *args, **kwargs)

    setattr(Mortal, method, dying)
    with pytest.raises(Killed):
        dreamed(tmp_path / "cut", make=Mortal, progress=Progress(str(tmp_path / "cut")))
    checkpoint = newest(tmp_path / "cut")

    class Continued(Dreaming):
        def __init__(self, texts, rehearsed):
            super().__init__(texts, rehearsed)
            self.load_checkpoint(checkpoint.learner)
            self.version = checkpoint.version
            self.versions = {"teacher": checkpoint.version}

    texts = PromptCodec(Three(), Words())
    # ids of words are those of the first life
    texts.tokenizer.ids = dict(whole.texts.tokenizer.ids)
    crew = Continued(texts, [])
    journal = Journal(tmp_path / "cut" / "metrics.jsonl", keep=checkpoint.journal)
    life = RunContext(
        crew,
        texts.task,
        texts,
        LIVED,
        journal,
        Console(),
        str(tmp_path / "cut"),
        progress=Progress(str(tmp_path / "cut")),
    )
    life.progress.restore(checkpoint)
    life.index.restore(checkpoint.index)
    live(life)
    journal.close()
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
