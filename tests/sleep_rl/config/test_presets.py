"""The presets in configs/."""

import pytest
import yaml

from sleep_rl.config.engine_options import CPU_ENGINE
from sleep_rl.config.loader import load
from sleep_rl.config.schema import Config
from tests.fakes.configs import PRESETS, toy


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_presets_load_and_begin_with_their_command(path):
    load(str(path))
    verb = "drill" if path.stem == "drill" else "run"
    assert path.read_text().startswith(f"# sleep-rl {verb} configs/{path.name}")


def test_values_of_presets():
    demo, mixed = (load(str(p)) for p in map(PRESETS[0].with_name, ("demo.yaml", "gkd_mixed.yaml")))
    objective = Config().objective
    assert (objective.on_policy, objective.alpha, objective.divergence) == (1.0, 0.5, "forward_kl")
    for config, name in ((demo, "demo"), (mixed, "gkd_mixed")):
        named = {"name": name, "checkpoint_steps": 300}
        assert config == toy(run=named, objective={"on_policy": 0.5})


def included(path):
    """Return the preset and all presets that it includes, directly or indirectly."""
    names = yaml.safe_load(path.read_text()).get("include", [])
    return {path.stem}.union(*(included(path.parent / name) for name in names))


def test_gpu_presets_have_no_cpu_or_toy_values():
    on_gpu = set()
    for path in PRESETS:
        config = load(str(path))
        if config.rollouts.gpus == 0:
            assert config.rollout_engine == {**CPU_ENGINE, **config.rollouts.engine}, path
            continue
        on_gpu.add(path.stem)
        engines = [config.rollout_engine, config.critic_engine] if config.critics.gpus else []
        for engine in (config.rollout_engine, *engines):
            assert not {"enforce_eager", "block_size", "max_num_seqs"} & engine.keys(), path
        assert config.model.dtype == "bfloat16", path
        assert config.sleep.lr <= 5e-4 and config.baselines.lr <= 5e-4, path
        for name in included(path):
            part = load(str(path.with_name(f"{name}.yaml")))
            assert (part.model.dtype, part.learners.threads) == ("bfloat16", 1), (path, name)
    assert on_gpu == {p.stem for p in PRESETS if "gpu" in p.stem} | {"arc", "squad_7b"}
