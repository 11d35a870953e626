"""Stages and checkpoints: an interrupted and resumed run gives the same result as an uninterrupted
one.
"""

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from sleep_rl.config.loader import keys
from sleep_rl.contracts.errors import RunError
from sleep_rl.journal.journal import Journal, read
from sleep_rl.session import stage_files
from sleep_rl.session.console import Console
from sleep_rl.session.context import RunContext
from sleep_rl.session.resumable import KINDS, Progress
from sleep_rl.session.stage_files import DRIVER, LEARNER, MANIFEST, newest
from sleep_rl.text.codec import PromptCodec
from tests.fakes.configs import changed
from tests.fakes.crew import RESUMABLE, Killed, MortalCrew, continue_life
from tests.fakes.texts import Diary, StableWords


def lines(folder):
    """Return the records without times."""
    times = ("t", "seconds", "tokens_per_second", "learner_idle", "path", "examples")
    return [
        {k: v for k, v in r.items() if k not in times and not k.endswith("_s")}
        for r in read(folder / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def whole_life(tmp_path_factory):
    """Return (folder, crew) of an uninterrupted run. Read-only."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, continue_life(folder)


@pytest.mark.stack  # a life for each of its calls: too long for `make quick`
def test_run_killed_at_any_call_resumes_to_the_same_result(whole_life, tmp_path, capsys):
    whole, want = whole_life
    assert want.calls > 100
    gone_on = set()
    for at in range(1, want.calls + 1):
        folder = tmp_path / "cut"
        folder.mkdir()
        with pytest.raises(Killed):
            continue_life(folder, at)
        again = continue_life(folder)
        assert again.weights == want.weights, f"killed at call {at}"
        assert lines(folder) == lines(whole), f"killed at call {at}"
        assert again.calls < want.calls or at < 5  # it went on, and did not begin anew
        gone_on |= set(again.resumed)
        shutil.rmtree(folder)
    # also inside nights: after generation, and after two and four of their five steps
    assert gone_on == {(0, 5), (2, 5), (4, 5)}


def test_run_killed_repeatedly_still_ends(whole_life, tmp_path, capsys):
    (whole, want) = whole_life
    cut = tmp_path / "cut"
    deaths = 0
    cut.mkdir()
    while True:
        try:
            crew = continue_life(cut, at=12)
            break
        except Killed:
            deaths += 1
    assert deaths > 10 and crew.weights == want.weights and lines(cut) == lines(whole)


DAMAGES = ("manifest", "driver", "learner", "partial")


def hurt(at, damage):
    """Damage a checkpoint or partial checkpoint."""
    if damage == "manifest":
        (at / MANIFEST).unlink()
    elif damage == "partial":
        at.rename(at.with_suffix(".partial"))
    else:
        file = at / {"driver": DRIVER, "learner": LEARNER}[damage]
        file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_skipped(damage, whole_life, tmp_path):
    shutil.copytree(whole_life[0], tmp_path, dirs_exist_ok=True)
    states = sorted((tmp_path / "state").iterdir())
    # two are kept, nothing half-written lies about
    assert [s.name.isdigit() for s in states] == [True, True]
    before, last = states
    hurt(last, damage)
    assert newest(tmp_path).folder == before


@pytest.fixture(scope="module")
def cut_in_a_night(tmp_path_factory):
    """Return the folder of a run that was killed after the second partial checkpoint of a night.
    Read-only.
    """
    for at in range(40, 200):
        folder = tmp_path_factory.mktemp("cut")
        with pytest.raises(Killed):
            continue_life(folder, at)
        if (part := newest(folder).partial) and part.step == 4:
            return folder
    raise AssertionError("no death fell behind a part")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_partial_checkpoint_is_skipped_and_the_night_restarts(
    damage, whole_life, cut_in_a_night, tmp_path, capsys
):
    (whole, want) = whole_life
    folder = tmp_path / "cut"
    shutil.copytree(cut_in_a_night, folder)
    part = newest(folder).partial
    # the newest part alone is kept
    [at] = {path for path in (folder / "state").iterdir() if "-" in path.name}
    assert part.learner == str(at / LEARNER) and re.fullmatch(r"consolidate/\d/[01]", part.stage)
    hurt(at, damage)
    assert newest(folder).partial is None
    again = continue_life(folder)
    assert again.resumed == [] and again.weights == want.weights and lines(folder) == lines(whole)


def test_partial_checkpoint_of_another_night_gives_one_line_error(cut_in_a_night, tmp_path, capsys):
    shutil.copytree(cut_in_a_night, tmp_path, dirs_exist_ok=True)
    at = Path(newest(tmp_path).partial.learner).parent
    driver = json.loads((at / DRIVER).read_text())
    driver["state"]["plan"]["night"] = 77
    (at / DRIVER).write_text(json.dumps(driver))
    (at / MANIFEST).write_text(
        json.dumps({file: stage_files._digest(at / file) for file in (LEARNER, DRIVER)})
    )
    with pytest.raises(
        RunError,
        match=r"cannot resume from the checkpoint of .* \(it belongs to .*77.*remove its folder",
    ):
        continue_life(tmp_path)
    shutil.rmtree(at)
    continue_life(tmp_path)


def test_full_disk_gives_one_line_error_and_keeps_earlier_checkpoints(
    whole_life, tmp_path, monkeypatch
):
    shutil.copytree(whole_life[0], tmp_path, dirs_exist_ok=True)
    before = newest(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    progress = Progress(str(tmp_path))
    progress.restore(before)
    crew = MortalCrew(PromptCodec(Diary(), StableWords()))
    journal = Journal(tmp_path / "other.jsonl")
    life = RunContext(
        crew, None, None, RESUMABLE, journal, Console(), str(tmp_path), progress=progress
    )
    for name in before.results:
        progress.once(life, name, lambda: None)
    with pytest.raises((RunError, OSError)) as caught:
        progress.once(life, "joint", lambda: None)
    assert "No space left on device" in str(caught.value)
    assert newest(tmp_path) == before


def test_names_of_stages(whole_life):
    names = list(newest(whole_life[0]).results)
    assert names[:7] == [
        "begin",
        "evaluate/base/sleep",
        "wake/1",
        "open_book/1",
        "retention_check/1",
        "consolidate/1/0",
        "evaluate/night 1/sleep",
    ]
    assert [n for n in names if n.startswith("consolidate")] == NIGHTS
    assert any(n.startswith("rollback/") for n in names) and len(set(names)) == len(names)


def switches(task):
    """Return stage -> the key that decides, in a run of `task`, whether it takes place."""
    config = changed(RESUMABLE, task={"name": task})
    return {name: kind.key(config) for name, kind in KINDS.items()}


def test_every_switch_is_a_key():
    for task in ("world", "classify", "documents", "custom"):
        named = switches(task)
        assert named.pop("begin") == "" and set(named.values()) <= set(keys()), task
    assert switches("squad")["wake"] == "task.days"
    assert switches("documents")["save"] == "task.documents.path"
    assert switches("custom")["evaluate"] == switches("custom")["open_book"] == "task.custom.target"


@pytest.mark.parametrize(
    ("done", "says"),
    [
        ("wake/4", "has stage wake/4, but this config does not: task.days had another value"),
        ("nap/4", "has stage nap/4, which this version does not know: another version wrote it"),
    ],
)
def test_a_stage_too_many_is_refused_with_its_key_if_it_has_one(done, says):
    progress = Progress()
    progress.results = {done: None}
    with pytest.raises(RunError, match=says):
        progress.finish(changed(RESUMABLE, task={"name": "world"}))


@pytest.mark.parametrize(
    ("name", "says"), [("wake/2", "task.days had"), ("begin", "another version wrote it")]
)
def test_a_missing_stage_is_refused_with_its_key_if_it_has_one(name, says):
    progress = Progress()
    progress.results = {"wake/3": None}
    run = SimpleNamespace(config=changed(RESUMABLE, task={"name": "world"}))
    with pytest.raises(RunError, match=f"{name} is missing .* newest stage is wake/3: {says}"):
        progress.once(run, name, lambda: None)


def with_baseline(value):
    return changed(RESUMABLE, baselines={"run": ["sft"] if value else []})


def without_gate():
    return changed(RESUMABLE, evaluate={"max_drop": None})


@pytest.mark.parametrize(
    ("first", "then", "says"),
    [
        (
            without_gate(),
            RESUMABLE,
            r"stage retention_check/1 is missing .*: evaluate\.max_drop had another value",
        ),
        (
            RESUMABLE,
            without_gate(),
            r"has stage retention_check/1, .*: evaluate\.max_drop had another value",
        ),
        (
            with_baseline(False),
            with_baseline(True),
            r"stage baseline/sft/1 is missing .*: baselines\.run had",
        ),
        (
            with_baseline(True),
            with_baseline(False),
            r"has stage baseline/sft/1, .*: baselines\.run had",
        ),
    ],
    ids=["check on", "check off", "baseline on", "baseline off"],
)
def test_resume_with_other_stages_is_refused_and_skips_no_night(
    first, then, says, tmp_path, capsys
):
    """Wherever the run was killed: either it ends like an uninterrupted one, or it is refused with
    the key that differs. No consolidation is skipped.
    """
    refused = 0
    for at in range(30, 400, 37):
        folder = tmp_path / str(at)
        folder.mkdir()
        try:
            continue_life(folder, at, config=first)
            break
        except Killed:
            pass
        try:
            continue_life(folder, config=then)
        except RunError as error:
            assert re.search(says, str(error)) and "\n" not in str(error)
            refused += 1
        else:
            assert [n for n in newest(folder).results if n.startswith("consolidate")] == NIGHTS
        shutil.rmtree(folder)
    assert refused > 2


NIGHTS = [
    "consolidate/1/0",
    "consolidate/2/1",
    "consolidate/2/0",
    "consolidate/3/1",
    "consolidate/3/0",
    "consolidate/4/1",
    "consolidate/4/0",
]
