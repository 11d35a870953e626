"""A memory folder finds its base after one of them, or both, were moved."""

import json
import os
import shutil

import pytest
import torch

from sleep_rl.cli.main import main
from sleep_rl.contracts.errors import InputError
from sleep_rl.journal.journal import Journal
from sleep_rl.model import checkpoints, memory_folder
from sleep_rl.model.pointer import POINTER, base_of, pointer_to
from sleep_rl.model.shape import checkpoint_shape
from sleep_rl.runs.resolve import ResolvedModel, resolve_model
from tests.fakes.models import LEVELS, fill_memory, make_base

IDS = torch.arange(20, 40)[None]


def logits(path):
    with torch.no_grad():
        return checkpoints.load(str(path))(IDS).logits


@pytest.fixture
def project(tmp_path):
    """<project>/cache/base, and <project>/runs/life after its only night."""
    folder = tmp_path / "project"
    base = make_base("qwen3", str(folder / "cache" / "base"))
    model = checkpoints.load(base, LEVELS["dense"])
    fill_memory(model)
    run = folder / "runs" / "life"
    night = str(run / "memory" / "night-1")
    memory_folder.save_memory(model, night, memory_folder.root(base))
    checkpoints.expand(night, str(run / "model"), LEVELS["dense"])
    Journal(run / "metrics.jsonl").close()
    return folder


@pytest.mark.parametrize("moved", ["the run", "the project", "a copy of the project", "a link"])
def test_moved_run_loads_same_model(project, tmp_path, moved):
    want = logits(project / "runs" / "life" / "memory" / "night-1")
    run = tmp_path / "elsewhere" / "runs" / "life"
    if moved == "the run":
        run = tmp_path / "elsewhere" / "deep" / "down" / "renamed"
        shutil.move(project / "runs" / "life", run)
    elif moved == "the project":
        shutil.move(project, tmp_path / "elsewhere")
    else:
        shutil.copytree(project, tmp_path / "elsewhere", symlinks=True)
        shutil.rmtree(project)
        if moved == "a link":  # the runs lie on another disk
            shutil.move(tmp_path / "elsewhere" / "runs", tmp_path / "disk")
            (tmp_path / "elsewhere" / "runs").symlink_to(tmp_path / "disk")
    night = run / "memory" / "night-1"
    assert torch.equal(logits(night), want)
    assert checkpoint_shape(str(night)).memory == tuple(LEVELS["dense"])
    assert checkpoints.load_tokenizer(str(night), 300).eos_token == "<eos>"
    for path in (run, run / "model"):
        found = resolve_model(str(path))
        assert (found.run, found.night) == (run, 1)
        assert torch.equal(logits(found.path), want)
        assert main(["export", str(path), str(tmp_path / f"out-{path.name}")]) == 0
        assert torch.equal(logits(tmp_path / f"out-{path.name}"), want)


def test_moved_run_resolves_to_last_night(project, tmp_path):
    run = project / "runs" / "life"
    assert resolve_model(str(run / "model")) == ResolvedModel(str(run / "model"), run, 1)
    shutil.move(project, tmp_path / "moved")
    run = tmp_path / "moved" / "runs" / "life"
    assert resolve_model(str(run / "model")).path == str(run / "memory" / "night-1")


def test_missing_base_error_names_path(project, tmp_path):
    night = project / "runs" / "life" / "memory" / "night-1"
    shutil.rmtree(project / "cache")
    line = rf"night-1: expected its base at {project}/cache/base .memory.json., got no such folder$"
    with pytest.raises(InputError, match=line):
        checkpoints.load(str(night))
    # written before, or by hand: without the second path
    pointer = json.loads((night / POINTER).read_text())
    del pointer["base_from_here"]
    (night / POINTER).write_text(json.dumps(pointer))
    with pytest.raises(InputError, match=line):
        checkpoints.load(str(night))


def test_resolution_order_of_base(tmp_path):
    for place in ("a/base", "b/base", "a/run", "b/run"):
        (tmp_path / place).mkdir(parents=True)
    pointer = pointer_to(str(tmp_path / "a" / "base"), str(tmp_path / "a" / "run"))
    assert pointer == {"base": f"{tmp_path}/a/base", "base_from_here": "../base"}
    assert base_of(tmp_path / "b" / "run", pointer) == f"{tmp_path}/a/base"
    os.rmdir(tmp_path / "a" / "base")
    assert base_of(tmp_path / "b" / "run", pointer) == f"{tmp_path}/b/base"
    assert base_of(tmp_path / "b" / "run" / "x", pointer) == f"{tmp_path}/a/base"
    assert pointer_to("Qwen/Qwen3-1.7B", str(tmp_path)) == {"base": "Qwen/Qwen3-1.7B"}
    assert base_of(tmp_path, {"base": "Qwen/Qwen3-1.7B"}) == "Qwen/Qwen3-1.7B"
    assert base_of(tmp_path, {"base": "/none", "base_from_here": 3}) == "/none"
