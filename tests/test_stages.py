"""stages.py: a life that is cut off anywhere and continued is the life that was never cut off."""

import hashlib
import json
import os
import shutil
from dataclasses import replace

import pytest

from sleep_rl.config import Evaluate
from sleep_rl.console import Console
from sleep_rl.contracts import RunError
from sleep_rl.cycle import live
from sleep_rl.life import Life
from sleep_rl.metrics import Journal, read
from sleep_rl.stages import DRIVER, LEARNER, MANIFEST, Progress, newest
from sleep_rl.text import Texts
from tests.test_cycle import CONFIG, Diary, Forgetful
from tests.test_night import Words


class Stable(Words):
    """As a real tokenizer's, a word's id does not depend on what else was read before."""

    ids = {"<bos>": 1, "<eos>": 2}

    def __init__(self):
        pass

    def __call__(self, text, add_special_tokens):
        for word in text.split():
            self.ids.setdefault(word, 10 + int(hashlib.sha256(word.encode()).hexdigest()[:12], 16))
        return {"input_ids": [self.ids[word] for word in text.split()]}


class Killed(BaseException):
    """Stands for SIGKILL: nobody catches it."""


class Mortal(Forgetful):
    """A crew whose weights are a chain of digests of everything it was ever told, and which dies at call number `at`."""

    def __init__(self, texts, rehearsed, at=None):
        super().__init__(texts, rehearsed)
        self.at, self.calls, self.weights, self.kept = at, 0, "", {}

    def _learn(self, *what):
        self.calls += 1
        if self.calls == self.at:
            raise Killed
        self.weights = hashlib.sha256(f"{self.weights}{what}".encode()).hexdigest()

    def wake(self, documents_N):
        self._learn("wake", documents_N)
        return super().wake(documents_N)

    def seed_step(self, batch_N, step, steps):
        self._learn("seed", batch_N, step)
        return super().seed_step(batch_N, step, steps)

    def close_night(self, commit_night):
        self._learn("close")
        return super().close_night(commit_night)

    def sample(self, requests_N, name, how):
        self.calls += 1
        if self.calls == self.at:
            raise Killed
        return super().sample(requests_N, name, how)

    def keep(self, tag):
        super().keep(tag)
        self.kept[tag] = self.weights

    def use(self, tag):
        super().use(tag)
        self.weights = self.kept[tag]

    def snapshot(self, path):
        self.calls += 1
        if self.calls == self.at:  # while the checkpoint is being written
            raise Killed
        with open(path, "w") as file:
            json.dump([self.weights, self.kept, self.protocol], file)

    def resume(self, path, version):
        with open(path) as file:
            self.weights, self.kept, protocol = json.load(file)
        self.protocol[:] = [tuple(tuple(x) if isinstance(x, list) else x for x in entry) for entry in protocol]
        self.versions = {"teacher": version}
        self.version = version


CONFIG = replace(CONFIG, evaluate=Evaluate(max_drop=0.5))


def lives(folder, at=None):
    """One process of a life in `folder`, from its newest checkpoint on; returns its crew."""
    found = newest(str(folder))
    texts = Texts(Diary(), Stable())
    crew = Mortal(texts, [], at)
    journal = Journal(folder / "metrics.jsonl", keep=found[1]["journal"] if found else 0)
    life = Life(crew, texts.task, texts, CONFIG, journal, Console(), str(folder), progress=Progress(str(folder)))
    if found:
        life.progress.results[:] = found[1]["results"]
        life.index.restore(found[1]["index"])
        crew.resume(str(found[0] / LEARNER), found[1]["version"])
    try:
        live(life)
    finally:
        journal.close()
    return crew


def lines(folder):
    """The record without its times."""
    times = ("t", "seconds", "tokens_per_second", "learner_idle", "path", "examples")
    return [{k: v for k, v in r.items() if k not in times and not k.endswith("_s")}
            for r in read(folder / "metrics.jsonl")]


def test_a_life_killed_at_any_call_ends_like_one_that_was_never_killed(tmp_path, capsys):
    whole = tmp_path / "whole"
    whole.mkdir()
    want = lives(whole)
    assert want.calls > 100
    for at in range(1, want.calls + 1):
        folder = tmp_path / "cut"
        folder.mkdir()
        with pytest.raises(Killed):
            lives(folder, at)
        again = lives(folder)
        assert again.weights == want.weights, f"killed at call {at}"
        assert lines(folder) == lines(whole), f"killed at call {at}"
        assert again.calls < want.calls or at < 5  # it went on, and did not begin anew
        shutil.rmtree(folder)


def test_a_life_killed_again_and_again_still_ends(tmp_path, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    want, deaths = lives(whole), 0
    while True:
        try:
            crew = lives(cut, at=12)
            break
        except Killed:
            deaths += 1
    assert deaths > 10 and crew.weights == want.weights and lines(cut) == lines(whole)


@pytest.mark.parametrize("damage", ["manifest", "driver", "learner", "partial"])
def test_a_damaged_checkpoint_is_passed_over(damage, tmp_path, capsys):
    lives(tmp_path)
    states = sorted((tmp_path / "state").iterdir())
    assert [s.name.isdigit() for s in states] == [True, True]  # two are kept, nothing half-written lies about
    before, last = states
    if damage == "manifest":
        (last / MANIFEST).unlink()
    elif damage == "partial":
        last.rename(last.with_suffix(".partial"))
    else:
        file = last / {"driver": DRIVER, "learner": LEARNER}[damage]
        file.write_bytes(file.read_bytes()[:-1])
    assert newest(str(tmp_path))[0] == before


def test_a_full_disk_is_one_line_and_leaves_the_earlier_checkpoints(tmp_path, monkeypatch, capsys):
    lives(tmp_path)
    at, driver = newest(str(tmp_path))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    progress = Progress(str(tmp_path), driver["results"][:-1])
    crew, journal = Mortal(Texts(Diary(), Stable()), []), Journal(tmp_path / "other.jsonl")
    life = Life(crew, None, None, CONFIG, journal, Console(), str(tmp_path), progress=progress)
    progress._reached = len(progress.results)
    with pytest.raises((RunError, OSError)) as caught:
        progress.once(life, lambda: None, "joint")
    assert "No space left on device" in str(caught.value)
    assert newest(str(tmp_path))[0] == at
