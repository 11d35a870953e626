"""A run's folder: keys that may change on resume, and the lock."""

import fcntl
import json
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.runs import run_dir
from sleep_rl.tasks.registry import make_task
from tests.fakes.configs import toy

CONFIG = toy(task={"days": 1, "world": {"people_per_day": 2, "known_people": 4}})


@pytest.fixture
def folder(tmp_path):
    run_dir.write(tmp_path, CONFIG, make_task(CONFIG))
    return tmp_path


def test_read_returns_config_and_wandb_id(folder):
    config, task, wandb = run_dir.read(folder, [], [])
    assert config == CONFIG and task.days() == make_task(CONFIG).days() and len(wandb) == 8
    assert run_dir.read(folder, [], [])[2] == wandb


@pytest.mark.parametrize(
    "override",
    [
        "cluster.backend=local",
        "cluster.call_timeout_s=5",
        "wandb.mode=offline",
        "rollouts.workers=3",
        "learners.threads=2",
        "reward.timeout_s=2",
        "run.dir=/moved/runs",
        "run.cache=/moved/cache",
    ],
)
def test_mutable_keys_may_change(folder, override):
    section, name = override.partition("=")[0].split(".")
    before = getattr(CONFIG, section)
    (config, _, _) = run_dir.read(folder, [override], [])
    assert getattr(getattr(config, section), name) != getattr(before, name)


def test_changed_key_needs_accept(folder):
    with pytest.raises(
        InputError, match=r"sleep.steps changed since the run began; --accept sleep.steps resumes"
    ):
        run_dir.read(folder, ["sleep.steps=5"], [])
    assert run_dir.read(folder, ["sleep.steps=5"], ["sleep.steps"])[0].sleep.steps == 5
    for key, value in (("model.d_low", 8), ("model.memory_layers", 1)):  # the memory's shape
        with pytest.raises(InputError, match=f"{key} changed since the run began"):
            run_dir.read(folder, [f"{key}={value}"], [])
    with pytest.raises(InputError, match=r"unknown key sleep.stepps; did you mean sleep.steps"):
        run_dir.read(folder, ["sleep.stepps=5"], [])


def test_metadata_has_only_the_section_of_the_chosen_task(folder):
    """Keys that are not stored are compared by their defaults."""
    stored = json.loads((folder / run_dir.FILE).read_text())["config"]["task"]
    assert stored.keys() == {"name", "days", "order_seed", "base_text", "stop", "world"}
    assert stored["days"] == 1 and stored["world"]["people_per_day"] == 2
    for override, changed in (
        ("task.days=2", "data, task.days"),
        ("task.world.people_per_day=3", "data, task.world.people_per_day"),
        ("task.squad.path=mine.json", "task.squad.path"),
    ):
        with pytest.raises(InputError, match="changed since the run began; --accept ") as caught:
            run_dir.read(folder, [override], [])
        named = re.search(r"--accept (\S+)", str(caught.value))[1]
        assert sorted(named.split(",")) == changed.split(", ")
        run_dir.read(folder, [override], named.split(","))


def test_changed_data_needs_accept(folder):
    other = replace(CONFIG, run=replace(CONFIG.run, seed=1))
    text = (folder / run_dir.FILE).read_text()
    (folder / run_dir.FILE).write_text(
        text.replace(run_dir.data_digest(make_task(CONFIG)), run_dir.data_digest(make_task(other)))
    )
    with pytest.raises(InputError, match="data changed since the run began; --accept data resumes"):
        run_dir.read(folder, [], [])
    assert run_dir.read(folder, [], ["data"])[0] == CONFIG


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"config": {}}'])
def test_invalid_metadata_gives_one_line_error(tmp_path, content):
    if content is not None:
        (tmp_path / run_dir.FILE).write_text(content)
    with pytest.raises(InputError, match=r"expected the folder of a run with run.json") as caught:
        run_dir.read(tmp_path, [], [])
    assert "\n" not in str(caught.value)


def test_full_disk_gives_one_line_error(tmp_path):
    with pytest.raises(RunError, match=r"run.json: cannot be written"):
        run_dir.write(tmp_path / "none", CONFIG, make_task(CONFIG))


def test_lock_excludes_other_processes(tmp_path):
    code = (
        "from pathlib import Path; from sleep_rl.runs import run_dir\n"
        f"with run_dir.alone(Path({str(tmp_path)!r})): print('in')"
    )

    def other():
        return subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[3],
        )

    with run_dir.alone(tmp_path):
        held = other()
        assert held.returncode and "another process works in this run" in held.stderr
    assert other().stdout == "in\n"  # the lock went with its holder


def test_held_does_not_block_alone(folder):
    """The live page calls `held` every two seconds, which takes the lock for an instant."""
    asking = open(folder / run_dir.LOCK, "w")  # noqa: SIM115 - closed by the timer
    fcntl.flock(asking, fcntl.LOCK_SH)
    threading.Timer(0.03, asking.close).start()
    with run_dir.alone(folder):
        assert run_dir.held(folder)
    with (
        run_dir.alone(folder),
        pytest.raises(InputError, match="another process works in this run"),
        run_dir.alone(folder),
    ):
        pass
