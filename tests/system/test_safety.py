"""Safety: no code of a checkpoint or config runs, no secret is written, no file outside a run's
folder.
"""

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.run_record import wandb_sink
from learners import checkpoint_io
from sleep_rl.cli.main import main
from sleep_rl.config import secrets
from sleep_rl.config.loader import load
from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.driver.cycle import live
from sleep_rl.journal.journal import Journal, read
from sleep_rl.model import checkpoints
from sleep_rl.model.grow import grow
from sleep_rl.report.page import write_report
from sleep_rl.runs import run_dir
from sleep_rl.session.console import Console
from sleep_rl.session.context import RunContext
from sleep_rl.session.resumable import Progress
from sleep_rl.session.stage_files import LEARNER, newest
from sleep_rl.tasks.registry import make_task
from sleep_rl.text.codec import PromptCodec
from tests.fakes.crew import RESUMABLE, MortalCrew, continue_life, live_from_checkpoint
from tests.fakes.models import LEVELS, make_base
from tests.fakes.texts import Diary, StableWords

DEBUG = str(Path(__file__).parents[2] / "configs" / "debug.yaml")
SECRETS = {
    name: f"s3cr3t-{name.lower()}"
    for name in ("WANDB_API_KEY", "HF_TOKEN", "SLEEP_RL_JUDGE_KEY", "RAY_AUTH_TOKEN")
}


class Bomb:
    """An object whose pickle runs code when it is loaded."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


# ---- code in what is loaded


def a_state(fill):
    return checkpoint_io.MemoryState(
        {"a.memory.0.w": torch.full((2, 3), fill)},
        {"a.memory.0.router": torch.full((3,), fill)},
        {1: [2, 1], 2: []},
    )


def test_learner_checkpoint_round_trip_stores_shared_states_once(tmp_path):
    sleep = a_state(1.5)
    other = a_state(2.5)
    generator = torch.Generator().manual_seed(3)
    path = str(tmp_path / LEARNER)
    checkpoint_io.write(path, {"sleep": sleep, "alias": sleep, "sft": other}, generator)
    states, state = checkpoint_io.read(path, "cpu")
    assert list(states) == ["sleep", "alias", "sft"] and states["alias"] is states["sleep"]
    for tag, wanted in (("sleep", sleep), ("sft", other)):
        for found, part in zip(states[tag][:2], wanted[:2], strict=True):
            assert found.keys() == part.keys() and all(
                torch.equal(found[key], part[key]) for key in part
            )
        assert states[tag][2] == wanted[2]
    assert torch.equal(state, generator.get_state())


@pytest.mark.parametrize("kind", ["pickle", "torch", "cut", "other", "nothing"])
def test_learner_checkpoint_with_code_or_damage_is_refused(kind, tmp_path):
    path = tmp_path / LEARNER
    checkpoint_io.write(str(path), {"sleep": a_state(1.0)}, torch.Generator())
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(tmp_path / "pwned")))
    elif kind == "torch":
        torch.save({"now": Bomb(tmp_path / "pwned")}, path)
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif kind == "other":
        checkpoints.save_file({"x": torch.zeros(2)}, path)
    else:
        path.unlink()
    with pytest.raises(RunError, match="the learner's state cannot be read") as caught:
        checkpoint_io.read(str(path), "cpu")
    assert "\n" not in str(caught.value) and not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("keep", [True, False], ids=["beside safetensors", "alone"])
def test_pickled_weights_are_refused(keep, tmp_path):
    base = make_base("qwen3", str(tmp_path / "base"))
    with open(Path(base) / "pytorch_model.bin", "wb") as file:
        pickle.dump(Bomb(tmp_path / "pwned"), file)
    if keep:
        assert checkpoints.load(base, LEVELS["dense"])
    else:
        (Path(base) / "model.safetensors").unlink()
        with pytest.raises(InputError, match="safetensors") as caught:
            checkpoints.load(base, LEVELS["dense"])
        assert "\n" not in str(caught.value)
        with pytest.raises(InputError, match=r"safetensors|cannot be read"):
            grow(base, str(tmp_path / "grown"), layers=1)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("model_type", ["qwen3", "their_own"])
def test_code_of_a_checkpoint_is_not_executed(model_type, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # transformers would ask, and somebody says yes
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    base = Path(make_base("qwen3", str(tmp_path / "base")))
    (base / "evil.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'pwned')!r})\nclass Evil: pass\n"
    )
    auto = {
        "AutoConfig": "evil.Evil",
        "AutoModel": "evil.Evil",
        "AutoModelForCausalLM": "evil.Evil",
        "AutoTokenizer": ["evil.Evil", "evil.Evil"],
    }
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((base / name).read_text())
        content |= {"auto_map": auto} | (
            {"model_type": model_type} if name == "config.json" else {}
        )
        (base / name).write_text(json.dumps(content))
    if model_type == "qwen3":
        out = checkpoints.expand(str(base), str(tmp_path / "out"), LEVELS["dense"])
        assert "auto_map" not in json.loads((Path(out) / "config.json").read_text())
        checkpoints.load(str(base), LEVELS["dense"])
    else:
        with pytest.raises(InputError, match="no readable Hugging Face config"):
            checkpoints.read_config(str(base))
    try:
        checkpoints.load_tokenizer(str(base), 300)
    except InputError as error:
        assert "\n" not in str(error)
    main(["eval", "base", DEBUG, "cluster.backend=local", "rollouts.engine.trust_remote_code=true"])
    assert "rollouts.engine.trust_remote_code: cannot be set here" in capsys.readouterr().err
    assert not (tmp_path / "pwned").exists()


# ---- secrets


@pytest.mark.parametrize(
    "override",
    [
        "task.squad.judge_endpoint=http://user:hunter22@host/v1",
        "task.squad.judge_endpoint=http://host/v1?api_key=hunter22",
        "model.base=https://hunter22@hub/model",
        "rollouts.engine.hf_token=hunter22",
        "critics.engine.a={api_key: hunter22}",
        "model.teachers=['http://x:hunter22@h/t']",
        "wandb.project=s3cr3t-wandb_api_key",
    ],
)
def test_secret_in_a_config_is_refused_and_not_printed(override, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    for command in ("plan", "run"):
        assert main([command, DEBUG, override]) == 2
        out, err = capsys.readouterr()
        assert (
            "a config must not contain a secret" in err
            and override.partition("=")[0].split(".a")[0] in err
            and err.count("\n") == 1
        )
        assert "hunter22" not in out + err and "s3cr3t" not in out + err
    assert not list(tmp_path.iterdir())


def test_ordinary_texts_are_not_secrets(monkeypatch):
    for name in [name for name in os.environ if secrets.is_secret(name)]:
        monkeypatch.delenv(name)
    config = load(
        DEBUG,
        [
            "task.squad.judge_endpoint=http://localhost:8000/v1?version=2",
            "rollouts.engine.max_num_batched_tokens=256",
        ],
    )
    assert config.task.squad.judge_endpoint.endswith("version=2")
    text = "mail nora@oslo.no, see http://a.b/c?page=2&sort=key and https://h/x"
    assert secrets.masked(text) == text
    (
        monkeypatch.setenv("HF_TOKEN", "short"),
        monkeypatch.setenv("HF_TOKEN_PATH", "/a/long/path/to/it"),
    )
    assert secrets.masked("short /a/long/path/to/it") == "short /a/long/path/to/it"


class Leaky(MortalCrew):
    """A crew whose messages contain everything that it knows."""

    def sample(self, requests_N, name, how):
        from sleep_rl.contracts.errors import Failure

        found = super().sample(requests_N, name, how)
        reason = " ".join(
            [*SECRETS.values(), "GET http://nora:hunter22@host/v1?api_key=hunter22&n=1 failed"]
        )
        return [Failure(reason, "rollout"), *found[1:]] if len(found) > 1 else found


@pytest.mark.stack
def test_secrets_of_the_environment_are_masked_in_all_files(tmp_path, monkeypatch, capsys):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "life"
    folder.mkdir()
    texts = PromptCodec(Diary(), StableWords())
    config = load(DEBUG, ["wandb.mode=offline"])
    run_dir.write(folder, config, make_task(config))
    sink = wandb_sink(config, folder, "abcd1234")
    assert sink.failed == ""
    journal = Journal(folder / "metrics.jsonl", [Console(), sink])
    journal.log(
        "run",
        config=run_dir.dump(config),
        task="diary",
        model="http://u:hunter22@h/m",
        started=1.0,
        commit=None,
        seeds=[0],
    )
    live(
        RunContext(
            Leaky(texts),
            texts.task,
            texts,
            RESUMABLE,
            journal,
            Console(),
            str(folder),
            progress=Progress(str(folder)),
        )
    )
    journal.log("done", seconds=1.0, status="failed", reason=f"HTTP 401 with {SECRETS['HF_TOKEN']}")
    journal.close()
    write_report(folder)
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert {"metrics.jsonl", "run.json", "report.html", "driver.json"} <= {
        path.name for path in written
    }
    assert any(path.suffix == ".wandb" for path in written)
    for path in written:
        content = path.read_bytes()
        assert b"s3cr3t" not in content and b"hunter22" not in content, path
    assert "s3cr3t" not in (printed := "".join(capsys.readouterr())) and "hunter22" not in printed
    failures = [r["reason"] for r in read(folder / "metrics.jsonl") if r["kind"] == "failure"]
    assert (
        failures and failures[0] == "*** *** *** *** GET http://***@host/v1?api_key=***&n=1 failed"
    )


@pytest.mark.slow
@pytest.mark.stack
def test_real_run_writes_no_secret(tmp_path, monkeypatch, base_checkpoint):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    assert (
        main(
            [
                "run",
                DEBUG,
                f"run.dir={tmp_path}",
                "cluster.backend=local",
                "wandb.mode=offline",
                "run.cache=cache",
            ]
        )
        == 0
    )
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert [path for path in written if b"s3cr3t" in path.read_bytes()] == []


# ---- folders


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    """Return a run's folder as a process left it."""
    folder = tmp_path_factory.mktemp("lived")
    continue_life(folder)
    config = load(DEBUG, ["cluster.backend=local"])
    run_dir.write(folder, config, make_task(config))
    return folder


@pytest.fixture
def life(lived, tmp_path):
    """Return a copy of the folder."""
    return Path(shutil.copytree(lived, tmp_path / "life", symlinks=True))


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "state", "memory", "dreams", "logs", "report.html", ".lock"]
)
def test_run_folder_with_outside_links_is_refused(name, life, tmp_path, capsys):
    away = tmp_path / "away"
    if (life / name).is_dir():
        shutil.copytree(life / name, away)
        shutil.rmtree(life / name)
    else:
        away.write_text("precious")
        (life / name).unlink(missing_ok=True)
    before = sorted(
        p.read_bytes() for p in ([away] if away.is_file() else away.rglob("*")) if p.is_file()
    )
    (life / name).symlink_to(away)
    assert main(["resume", str(life)]) == 2
    assert str(life / name) in (err := capsys.readouterr().err) and err.count("\n") == 1
    assert (
        sorted(
            p.read_bytes() for p in ([away] if away.is_file() else away.rglob("*")) if p.is_file()
        )
        == before
    )


def test_run_folder_may_be_a_link(life, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(life)
    run_dir.check_inside(link)  # raises if it is refused, as it is with a link inside
    (life / "state").rename(tmp_path / "away")
    (life / "state").symlink_to(tmp_path / "away")
    with pytest.raises(InputError, match="inside the run's folder, got a link to"):
        run_dir.check_inside(link)


def test_damaged_checkpoints_do_not_restart_the_run(life, capsys):
    record = (life / "metrics.jsonl").read_bytes()
    for state in (life / "state").iterdir():
        (state / "driver.json").write_text("{}")
    assert main(["resume", str(life)]) == 1
    assert "expected a valid checkpoint" in capsys.readouterr().err
    assert (life / "metrics.jsonl").read_bytes() == record


def test_journal_shorter_than_its_checkpoint_is_refused(life):
    record = (life / "metrics.jsonl").read_bytes()[:50]
    (life / "metrics.jsonl").write_bytes(record)
    with pytest.raises(
        RunError, match=r"expected at least the [0-9]+ bytes that its checkpoint refers to"
    ):
        Journal(life / "metrics.jsonl", keep=newest(life).journal)
    assert (life / "metrics.jsonl").read_bytes() == record


def test_names_of_days_and_dreams_are_not_used_as_paths(tmp_path):
    class Hostile(Diary):
        def days(self):
            return tuple(replace(day, name=f"../../{day.name}/\0") for day in super().days())

    folder = tmp_path / "deep" / "life"
    folder.mkdir(parents=True)
    texts = PromptCodec(Hostile(), StableWords())
    live_from_checkpoint(MortalCrew(texts), texts, RESUMABLE, folder)
    write_report(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["deep"] and [
        path.name for path in (tmp_path / "deep").iterdir()
    ] == ["life"]


# ---- servers


@pytest.mark.stack
def test_own_ray_listens_on_loopback_only(ray_addresses):
    assert ray_addresses
    assert {ip.removeprefix("::ffff:") for ip in ray_addresses} == {"127.0.0.1"}
