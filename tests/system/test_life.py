"""Whole runs on the real stack, in this process and on Ray, from config to report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sleep_rl.journal.journal import read
from tests.fakes.configs import toy
from tests.fakes.processes import LIMIT_S
from tests.fakes.undocumented import undocumented

ROOT = Path(__file__).parents[2]


def run(tmp_path, *overrides):
    """`sleep-rl run configs/debug.yaml ...` in a process of its own, with the base model of the
    demo's cache.
    """
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "OMP_", "TORCHDYNAMO"))
    }
    built = tmp_path / "extensions"
    environment["TORCH_EXTENSIONS_DIR"] = str(built)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sleep_rl",
            "run",
            "configs/debug.yaml",
            f"run.dir={tmp_path}",
            "run.name=life",
            *overrides,
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert not built.exists(), (
        "DeepSpeed compiled an op: minutes, and a compiler that a fresh machine may not have"
    )
    return done


def of(records, kind):
    return [r for r in records if r["kind"] == kind]


@pytest.mark.stack
@pytest.mark.parametrize("backend", ["local", "ray"])
def test_run_from_config_to_report(backend, tmp_path):
    more = (
        ["reward.semantic=encoder", "sleep.lag=1"] if backend == "ray" else ["wandb.mode=offline"]
    )
    done = run(
        tmp_path,
        f"cluster.backend={backend}",
        *more,
        "baselines.run=[sft,joint]",
        "baselines.steps={sft: 2, joint: 2}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "life"
    records = read(folder / "metrics.jsonl")
    assert undocumented(records) == []
    closed = [r for r in of(records, "evaluate") if r["row"]]
    rows = [(r["after"], r["method"], sorted(r["row"])) for r in closed]
    assert rows == [
        ("base", "sleep", ["known"]),
        ("night 1", "sleep", ["day1", "known"]),
        ("night 1", "sft", ["day1", "known"]),
        ("night 2", "sleep", ["day1", "day2", "known"]),
        ("night 2", "sft", ["day1", "day2", "known"]),
        ("night 2", "joint", ["day1", "day2", "known"]),
    ]
    assert closed[0]["row"]["known"] >= 0.99  # the cached base knows its people
    seeds = of(records, "seed")
    assert [(r["night"], r["step"]) for r in seeds] == [(n, s) for n in (1, 2) for s in range(4)]
    assert all(r["sequences"] == 12 and r["loss"] == r["loss"] for r in seeds)
    # rollout engine and learner agree before a step
    assert max(r["logprob_gap"] for r in seeds if r["step"] == 0) < 1e-4
    flow = of(records, "flow")
    assert flow and all(r["newest"] - r["oldest"] <= 1 for r in flow)
    pushes = of(records, "push")
    assert all(r["workers"] == 1 for r in pushes)
    # one that came while samples were under way has none
    gaps = [r["probe_gap"] for r in pushes if "probe_gap" in r]
    assert gaps and max(gaps) < 1e-3
    assert [r["version"] for r in pushes] == list(range(1, len(pushes) + 1))
    assert not of(records, "sink_failed") and bool(list(folder.glob("wandb/offline-run-*"))) == (
        backend == "local"
    )
    assert (
        of(records, "done")[0]["status"] == "ok" and "<svg" in (folder / "report.html").read_text()
    )
    memory = [load_file(folder / "memory" / f"night-{n}" / "memory.safetensors") for n in (1, 2)]
    key = "model.layers.0.mlp.memory.0.w_out"
    # the second night left the first one's expert alone
    assert torch.equal(memory[0][key][1], memory[1][key][1])
    assert memory[0][key][2].abs().max() == 0 < memory[1][key][2].abs().max()
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["architectures"] == ["SleepQwen3ForCausalLM"]


@pytest.mark.stack
def test_nonfinite_loss_ends_the_run_and_keeps_saved_files(tmp_path):
    done = run(
        tmp_path,
        "cluster.backend=local",
        "sleep.lr=1e30",
        "learners.grad_clip=1e30",
        "sleep.warmup=0",
    )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("sleep-rl: ")]
    assert len(lines) == 1 and ("loss is" in lines[0] or "gradient norm is" in lines[0]), (
        done.stderr
    )
    assert "Traceback" not in done.stderr + done.stdout
    records = read(tmp_path / "life" / "metrics.jsonl")
    assert of(records, "done")[0]["status"] == "failed" and of(records, "evaluate")
    assert (tmp_path / "life" / "report.html").is_file() and not (
        tmp_path / "life" / "memory" / "night-1"
    ).exists()


def test_second_run_gets_a_new_folder(tmp_path):
    from sleep_rl.runs.run_dir import new_folder

    config = toy(run={"name": "life", "dir": str(tmp_path)})
    assert [new_folder(config).name for _ in range(3)] == ["life", "life-2", "life-3"]


@pytest.mark.stack
def test_eval_of_a_saved_memory_needs_no_learner(tmp_path):
    done = run(tmp_path, "cluster.backend=local")
    assert done.returncode == 0, done.stdout + done.stderr
    last = read(tmp_path / "life" / "metrics.jsonl")
    memory = str(tmp_path / "life" / "memory" / "night-2")
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "OMP_", "TORCHDYNAMO"))
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sleep_rl",
            "eval",
            memory,
            "configs/debug.yaml",
            f"run.dir={tmp_path}",
            "run.name=again",
            "cluster.backend=local",
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (again,) = [r for r in of(read(tmp_path / "again-eval" / "metrics.jsonl"), "evaluate")]
    want = [r for r in of(last, "evaluate") if r["after"] == "night 2" and r["row"]][-1]
    assert again["row"] == want["row"] and again["n"] == want["n"]


@pytest.fixture
def deep_base(tmp_path):
    """A base that writes dreams in the right form, though hardly a true one: trained for
    seconds.
    """
    from sleep_rl.tasks.world.base_model import Recipe, Stage
    from sleep_rl.tasks.world.task import World

    recipe = Recipe(steps=220, stages=(Stage(1.0, 4, 16),), in_context=0.9, dreams=0.7, deeper=0.3)
    return World(0, days=2, people_per_day=2, deep=True, recipe=recipe).base_checkpoint(
        str(tmp_path / "cache"), 0, None
    )


@pytest.mark.stack
def test_run_with_dreaming(deep_base, tmp_path):
    done = run(
        tmp_path,
        f"model.base={deep_base}",
        "task.world.deep=true",
        "model.top_k=1",
        "model.experts=4",
        "dream.rounds=2",
        "dream.tasks=2",
        "dream.dreams_per_task=4",
        "dream.keep_top=2",
        "dream.keep_random=1",
        "dream.copies.seeds=2",
        "dream.steps=4",
        "dream.copies.epochs=3",
        "dream.copies.lr=0.02",
        "evaluate.contexts=[]",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "life"
    records = read(folder / "metrics.jsonl")
    assert undocumented(records) == []
    assert [(r["night"], r["round"], r["written"]) for r in of(records, "dreamed")] == [
        (1, 1, 8),
        (1, 2, 8),
        (2, 1, 8),
        (2, 2, 8),
    ]
    dreams = of(records, "dream")
    tried = [d for d in dreams if d["kept"]]
    assert len(tried) >= 8 and all(
        len(d["taus"]) == 2 and d["held_out"] is not None and d["importance"] for d in tried
    )
    assert all(d["reward"] == int(sum(d["taus"]) / 2 > d["tau_before"]) for d in tried)
    levels = {f"model.layers.{n}.mlp.memory.0" for n in (0, 1)}
    assert all(
        d["experts"].keys() == levels and set(d["experts"].values()) <= {1, 2, 3, 4} for d in dreams
    )
    # random among the unlocked
    assert {slot for d in dreams if d["night"] == 2 for slot in d["experts"].values()} >= {1, 2}
    good = [d for d in dreams if d["reward"]]
    nights = [(r["night"], r["sender"]) for r in of(records, "night")]
    assert nights == [
        entry for n in (1, 2) for entry in [(n, 0)] + [(n, -1)] * any(d["night"] == n for d in good)
    ]
    assert [sorted(r["deeper"]) for r in of(records, "evaluate") if r["method"] == "sleep"][1:] == [
        ["paraphrased", "reversed", "two-hop"]
    ] * 2
    kept = [
        json.loads(line)
        for file in sorted((folder / "dreams").iterdir())
        for line in file.read_text().splitlines()
    ]
    assert [d["text"] for d in kept] == [d["text"] for d in dreams]
    assert (
        of(records, "done")[0]["status"] == "ok"
        and "<h2>Dreams</h2>" in (folder / "report.html").read_text()
    )


@pytest.mark.slow
@pytest.mark.stack
def test_small_teacher_is_seeded_into_a_grown_model(tmp_path):
    from sleep_rl.model.grow import grow

    base = subprocess.run(
        [sys.executable, "-m", "sleep_rl", "pretrain", "configs/debug.yaml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    ).stdout.split()[-1]
    large = grow(str(ROOT / base), str(tmp_path / "large"), width=2, layers=1)
    done = run(
        tmp_path,
        f"model.base={large}",
        f"model.teachers=[{ROOT / base}]",
        "rollouts.cpus=0.5",
        "task.days=1",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records = read(tmp_path / "life" / "metrics.jsonl")
    [told, _] = of(records, "written")
    assert told["night"] == 0 and told["new"] > 8 < told["unconditional"]
    first = next(r for r in of(records, "seed") if r["night"] == 0)
    # the grown model computes what its teacher does
    assert first["divergence"] < 1e-4 and first["logprob_gap"] < 1e-4
    rows = [(r["after"], r["row"]["known"]) for r in of(records, "evaluate") if r["row"]]
    assert [after for after, _ in rows] == ["base", "night 0", "night 1"] and rows[0][1] >= 0.99
    memory = load_file(tmp_path / "life" / "memory" / "night-0" / "memory.safetensors")
    assert memory["model.layers.0.mlp.memory.0.w_out"][1].abs().max() > 0
