"""A task and a crew that dream, without a model."""

from __future__ import annotations

import json
import random

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import (
    HARD_TARGET,
    STUDENT,
    DreamTask,
    Lesson,
    Question,
    TrainingText,
)
from sleep_rl.dreaming.dream import DREAMER, SELF
from tests.fakes.crew import Crew
from tests.fakes.texts import Diary


class DreamDiary(Diary):
    """The Diary's first three days, as a task whose dreams are questions with answers; a useful one
    has the day's word in a reversed question.
    """

    dream_opener = "D :"
    max_dream_tokens = 20

    def days(self):
        return super().days()[:3]

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


class DreamingCrew(Crew):
    """A crew whose dreams are correct in every second case for the model, and always for the
    policy; one in seven has no lesson.
    """

    def __init__(self, texts):
        super().__init__(texts)
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
        kept = {"state": self.state, "snapshots": self.snapshots, "policies": self.policies}
        with open(path, "w") as file:
            json.dump(kept, file)

    def save_progress(self, path):
        assert self.open
        self.save_checkpoint(path)

    def resume(self, path, version):
        self._read(path)
        self.version = version
        self.versions = {"teacher": version}

    def restore_progress(self, path, step, steps):
        assert self.open and step < steps
        self._read(path)
        self.versions["student"] = self.version

    def _read(self, path):
        with open(path) as file:
            kept = json.load(file)
        self.state = kept["state"]
        self.snapshots = kept["snapshots"]
        self.policies = kept["policies"]
