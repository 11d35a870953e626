"""Presets pass the plan; memory per GPU is summed and compared with cluster.gpu_gb."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sleep_rl.config.loader import load
from sleep_rl.contracts.errors import InputError
from sleep_rl.model.shape import PUBLISHED
from sleep_rl.plan.gpu_fit import gpu_loads
from sleep_rl.plan.plan import plan
from sleep_rl.plan.render import render
from sleep_rl.plan.sizes import memory_bytes

ROOT = Path(__file__).parents[3]
CONFIGS = sorted(file.stem for file in (ROOT / "configs").glob("*.yaml"))
SIZED = {
    f"gpu{count}_{model}": (count, base)
    for count in (1, 8, 64)
    for model, base in (("qwen3_8b", "Qwen/Qwen3-8B"), ("llama3_8b", "meta-llama/Llama-3.1-8B"))
}
pytestmark = pytest.mark.usefixtures("nowhere")


def config(*overrides: str, name: str = "demo"):
    return load(str(ROOT / "configs" / f"{name}.yaml"), overrides)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_preset_passes_plan_offline(name, tmp_path):
    """Its first line is its command."""
    words = (ROOT / "configs" / f"{name}.yaml").read_text().splitlines()[0].split()
    assert (
        words[:2] == ["#", "sleep-rl"]
        and words[2] in ("run", "drill")
        and words[3] == f"configs/{name}.yaml"
    )
    given = (
        {"task.documents.path": str(ROOT / "configs" / "documents")} if "documents" in name else {}
    )
    if name == "demo_documents":
        given["task.documents.known"] = str(ROOT / "configs" / "example" / "known.jsonl")
    if name == "arc":
        puzzles = {
            f"p{n}": {
                "train": [{"input": [[n % 10, 1]], "output": [[1, n % 10]]}] * 3,
                "test": [{"input": [[n % 10, 2]]}],
            }
            for n in range(1, 12)
        }
        for key, content in (
            ("challenges", puzzles),
            ("solutions", {p: [[[2, 1]]] for p in puzzles}),
        ):
            (tmp_path / f"{key}.json").write_text(json.dumps(content))
        given["task.arc.path"] = str(tmp_path)
    p = plan(config(*(f"{key}={value}" for key, value in given.items()), name=name))
    assert render(p) and (p.config.wandb.mode, p.config.cluster.backend) == ("off", "ray")


def test_presets_for_1_8_and_64_gpus_fit_80_gb():
    assert set(SIZED) <= set(CONFIGS)
    for name, (count, base) in SIZED.items():
        c = config(name=name)
        p = plan(c)
        assert (p.gpus, p.base, c.model.dtype) == (
            count,
            replace(PUBLISHED[base], source=p.base.source),
            "bfloat16",
        ), name
        assert c.run.name == name
        assert c.cluster.gpu_gb == 80 and all(
            0 < load.min_gpu_bytes <= 80e9 for load in gpu_loads(p)
        ), name
        assert "fits the 80 GB of cluster.gpu_gb" in render(p)
        # rollouts and learners with GPUs of their own work at the same time, every rank has rows
        # enough, and a pass holds the longest
        assert c.sleep.lag == (count > 1)
        assert not any("ranks" in note or "pass_tokens" in note for note in p.notes)


def test_gpu_loads():
    apart = plan(config("cluster.gpu_gb=80", name="gpu8_qwen3_8b"))
    rollout, learner = gpu_loads(apart)
    base = 2 * 8_190_735_360
    memory = memory_bytes(apart.config, apart.base)
    token = 2 * 36 * 8 * 128 * 2
    assert (
        rollout.roles,
        rollout.fixed_bytes,
        rollout.share,
        rollout.token_bytes,
        rollout.max_tokens,
    ) == (
        "rollout",
        base + 2 * memory,
        0.9,
        token,
        1024,
    )
    assert (
        rollout.min_gpu_bytes == (base + 2 * memory + 1024 * token) / 0.9
        and rollout.cache_bytes(80e9) == 72e9 - base - 2 * memory
    )
    assert (learner.roles, learner.min_gpu_bytes) == ("learner", apart.learner.total)
    assert learner.cache_bytes(80e9) == 0
    halves = plan(
        config(
            "rollouts.gpus=2",
            "rollouts.tensor_parallel=2",
            "learners.world_size=2",
            name="gpu8_qwen3_8b",
        )
    )
    half = gpu_loads(halves)[0]
    assert (half.fixed_bytes, half.token_bytes) == (rollout.fixed_bytes / 2, token / 2)
    (shared,) = gpu_loads(plan(config(name="gpu1_qwen3_8b")))
    together = plan(config(name="gpu1_qwen3_8b"))
    assert (
        shared.roles == "rollout + learner"
        and shared.min_gpu_bytes == together.rollout.total + together.learner.total
    )
    assert gpu_loads(plan(config())) == ()
    assert "gpu memory" not in render(plan(config()))


def test_unknown_gpu_memory_is_compared_with_gpu_sizes():
    assert "; fits a GPU of 40 GB (rough)" in render(plan(config(name="gpu1")))
    assert "; fits a GPU of 80 GB (rough)" in render(
        plan(config("cluster.gpu_gb=null", name="gpu64_qwen3_8b"))
    )
    assert "; does not fit any current GPU (rough)" in render(
        plan(
            config(
                "cluster.gpu_gb=null",
                "learners.pass_tokens=92520",
                "learners.world_size=1",
                name="gpu64_qwen3_8b",
            )
        )
    )


UNFIT = [
    (
        "gpu8_qwen3_8b",
        ("cluster.gpu_gb=24",),
        "cluster.gpu_gb: at least 44 for a GPU of learner (about 43.6 GB), got 24",
    ),
    (
        "gpu8_qwen3_8b",
        ("cluster.gpu_gb=19", "learners.pass_tokens=300"),
        "cluster.gpu_gb: at least 20 for a GPU of rollout (about 17.1 GB and a KV cache), got 19",
    ),
    (
        "gpu1_llama3_8b",
        ("cluster.gpu_gb=48",),
        "cluster.gpu_gb: at least 60 for a GPU of rollout + learner (about 59.9 GB), got 48",
    ),
    (
        "gpu1",
        ("rollouts.engine.gpu_memory_utilization=null",),
        "rollouts.engine.gpu_memory_utilization: at most rollouts.gpus = 0.5 on a shared GPU, "
        "since vLLM starts only if that share is free, got 0.92",
    ),
    (
        "gpu1",
        ("rollouts.engine.kv_cache_memory_bytes=null",),
        "rollouts.engine.kv_cache_memory_bytes: a number of bytes on a shared GPU (rollouts.gpus = "
        "0.5), got null",
    ),
]


@pytest.mark.parametrize(
    ("name", "overrides", "line"), UNFIT, ids=[f"{u[0]}-{u[1][0]}" for u in UNFIT]
)
def test_config_that_does_not_fit_a_gpu_gives_one_line_error(name, overrides, line):
    with pytest.raises(InputError) as caught:
        plan(config(*overrides, name=name))
    assert str(caught.value) == line
