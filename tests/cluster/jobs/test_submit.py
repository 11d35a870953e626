"""`sleep-rl submit` against a fake job server that checks each request; test_jobs.py runs it on a
real cluster. What imports Ray is imported in the tests, since `make quick` needs none.
"""

import io
import json
import os
import re
import shlex
import zipfile

import pytest

from sleep_rl.config.loader import dump, load
from tests.fakes.job_server import DEBUG, TOKEN, submit
from tests.fakes.processes import ROOT

pytestmark = pytest.mark.stack  # real commands in processes of their own


def code_of(root):
    packages = ("sleep_rl", "actors", "learners", "cluster", "tests")
    return [file for package in packages for file in (root / package).rglob("*.py")]


def test_submit_sends_code_config_and_absolute_paths(server, capsys, tmp_path, monkeypatch):
    from cluster.jobs.submit import STOP_S

    monkeypatch.chdir(tmp_path)
    server.history = [
        ("PENDING", "", None),
        ("RUNNING", "one\n", None),
        ("RUNNING", "one\ntwo\n", None),
        ("SUCCEEDED", "one\ntwo\nthree\n", 0),
    ]
    assert submit(server, DEBUG, "rollouts.workers=2", "run.dir=lives") == 0
    [(name, sent)] = server.jobs.items()
    assert re.fullmatch(r"debug-\d{4}-\d{6}", name)
    exec_, python, *command = shlex.split(sent["entrypoint"])
    assert (exec_, python, command[:4]) == (
        "exec",
        "python",
        ["-m", "sleep_rl", "run", "submitted/debug.yaml"],
    )
    with zipfile.ZipFile(
        io.BytesIO(server.packages[sent["runtime_env"]["working_dir"]])
    ) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "there")
    wanted = dump(load(DEBUG, ["rollouts.workers=2"]))
    wanted["run"] |= {
        "name": name,
        "dir": str(tmp_path / "lives"),
        "cache": str(tmp_path / "cache"),
    }
    wanted["cluster"]["address"] = "auto"
    assert dump(load(str(tmp_path / "there" / command[3]), command[4:])) == wanted
    assert {
        "sleep_rl/cli/main.py",
        "cluster/runtime/ray_backend.py",
        "configs/demo.yaml",
        "pyproject.toml",
    } <= set(names)
    assert not [n for n in names if re.match(r"(cache|runs|\.|build)/|.*(__pycache__|/\.)", n)]
    # all of the code, whatever its folders are called: sleep_rl/runs is a package
    assert {str(file.relative_to(ROOT)) for file in code_of(ROOT)} <= set(names)
    assert sent["metadata"]["config"] == DEBUG and sent["metadata"]["run"] == str(
        tmp_path / "lives" / name
    )
    assert re.fullmatch("[0-9a-f]{40}|unknown", sent["metadata"]["commit"])
    assert sent["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == str(STOP_S)
    out, err = capsys.readouterr()
    assert out.endswith("\none\ntwo\nthree\n") and out.count("one\n") == 1
    assert (
        f"sleep-rl submit --follow {name} --address {server.address}" in out
        and f"--stop {name}" in out
    )
    assert err == f"{name}: a reason\n"  # why it is still pending, once
    assert TOKEN not in out + err + json.dumps(sent)


def test_jobs_of_task_documents_share_one_run_folder(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("Nora Costa lives in Oslo.")
    monkeypatch.setattr(
        "cluster.jobs.submit.plan", lambda config: None
    )  # its base model is not here
    assert (
        submit(
            server,
            str(ROOT / "configs" / "documents_world.yaml"),
            "task.documents.path=notes",
            "run.name=mine",
        )
        == 0
    )
    [(job, sent)] = server.jobs.items()
    command = shlex.split(sent["entrypoint"])
    assert (
        job.startswith("mine-")
        and "run.name=mine" in command
        and sent["metadata"]["run"] == f"{tmp_path}/runs/mine"
    )
    assert f"task.documents.path={tmp_path}/notes" in command
    assert "task.documents.path=notes" not in command


def test_installed_sends_the_config_without_code(server, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"include: [{DEBUG}]\nrun: {{name: mine}}\n")
    assert submit(server, str(mine), "--installed") == 0
    [sent] = server.jobs.values()
    with zipfile.ZipFile(
        io.BytesIO(server.packages[sent["runtime_env"]["working_dir"]])
    ) as archive:
        assert archive.namelist() == ["submitted/mine.yaml"]


def test_existing_paths_become_absolute_and_hub_names_stay(tmp_path, monkeypatch):
    from cluster.jobs.submit import _absolute

    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.json").write_text("[]")
    (tmp_path / "small base").mkdir()
    (tmp_path / "own.py").write_text("")
    config = load(
        DEBUG,
        [
            "reward.semantic=custom",
            "reward.target=own.py:Same",
            "task.classify.path=data.json",
            "task.squad.path=rajpurkar/squad",
            "model.base=small base",
            "model.teachers=[small base, Qwen/Qwen3-0.6B]",
        ],
    )
    overrides = _absolute(config)
    got = load(DEBUG, ["reward.semantic=custom", *overrides])
    assert (got.task.classify.path, got.model.base) == (
        str(tmp_path / "data.json"),
        str(tmp_path / "small base"),
    )
    assert got.model.teachers == [str(tmp_path / "small base"), "Qwen/Qwen3-0.6B"]
    assert got.reward.target == f"{tmp_path}/own.py:Same"
    assert got.task.squad.path == "rajpurkar/squad" and not any(
        "squad" in text for text in overrides
    )


def test_nothing_is_sent_for_an_invalid_config(server, capsys):
    assert submit(server, DEBUG, "model.base=./none") == 2
    assert submit(server, DEBUG, "sleep.stepps=3") == 2
    assert capsys.readouterr().err.count("\n") == 2 and server.requests == []


def test_stop_prints_how_to_resume(server, job, capsys):
    server.history = [("RUNNING", "", None)]
    assert submit(server, "--stop", job) == 0 and server.stopped == [job]
    assert capsys.readouterr().out == (
        f"{job}: stopped; sleep-rl submit --resume "
        "/shared/runs/life-1 --address "
        f"{server.address} resumes its run\n"
    )
    assert submit(server, "--stop", job) == 0 and server.stopped == [job]
    assert capsys.readouterr().out == f"{job}: has ended already (STOPPED)\n"


def test_resume_keeps_the_run_folder_under_a_new_job_id(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        submit(
            server, "--resume", "runs/life-1125-070000", "rollouts.workers=3", "--accept", "data"
        )
        == 0
    )
    assert submit(server, "--resume", "runs/other", "--installed") == 0
    (first, one), (second, two) = server.jobs.items()
    assert (
        re.fullmatch(r"life-\d{4}-\d{6}", first)
        and first != "life-1125-070000"
        and second.startswith("other-")
    )
    assert shlex.split(one["entrypoint"])[2:] == [
        "-m",
        "sleep_rl",
        "resume",
        f"{tmp_path}/runs/life-1125-070000",
        "rollouts.workers=3",
        "cluster.address=auto",
        "--accept",
        "data",
    ]
    assert one["metadata"]["run"] == f"{tmp_path}/runs/life-1125-070000"
    assert "working_dir" in one["runtime_env"] and "working_dir" not in two["runtime_env"]


@pytest.mark.parametrize(
    "argv",
    [
        [],
        [DEBUG, "--stop", "x"],
        ["--stop", "x", "--follow", "y"],
        ["--follow", "x", "a.b=1"],
        ["--resume", "x", DEBUG],
    ],
    ids=lambda argv: " ".join(map(os.path.basename, argv)) or "none",
)
def test_submit_takes_exactly_one_of_config_follow_stop_resume(server, argv, capsys):
    assert submit(server, *argv) == 2 and server.requests == []
    assert capsys.readouterr().err.startswith(
        "sleep-rl: submit: expected a CONFIG or one of --follow JOB, --stop JOB, --resume"
    )
