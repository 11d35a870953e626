"""Baselines by name: modules of a folder."""

import importlib
import subprocess
import sys

import pytest

from sleep_rl.contracts.errors import InputError
from sleep_rl.driver.baselines import registry
from tests.fakes.configs import toy
from tests.fakes.processes import LIMIT_S


def test_every_module_is_a_baseline():
    assert registry.names() == ("joint", "sft")
    for name in registry.names():
        module = importlib.import_module(f"sleep_rl.driver.baselines.{name}")
        assert module.STEPS > 0
        assert hasattr(module, "after_night") or hasattr(module, "after_life")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"run": ["ewc"]}, r"^baselines\.run: some of joint, sft, each once, got \['ewc'\]$"),
        ({"run": ["sft", "sft"]}, r"^baselines\.run: .*each once"),
        (
            {"steps": {"sft": 0}},
            r"^baselines\.steps: joint, sft, each with an integer >= 1, got "
            r"sft: 0$",
        ),
        ({"steps": {"ewc": 5}}, r"^baselines\.steps: .* got ewc: 5$"),
    ],
)
def test_invalid_name_or_steps_give_one_line_error(values, says):
    with pytest.raises(InputError, match=says):
        registry.check(toy(baselines=values))


def test_steps_default_to_the_module():
    config = toy(baselines={"run": ["sft", "joint"], "steps": {"sft": 5}})
    joint = importlib.import_module("sleep_rl.driver.baselines.joint")
    assert registry.planned_steps(config, 3) == {"sft": 15, "joint": joint.STEPS}


def test_planning_has_no_heavy_imports():
    code = (
        "import sys; from sleep_rl.driver.baselines import registry; import "
        "sleep_rl.driver.baselines.sft;"
        "print(sorted({'torch', 'transformers', 'ray', 'vllm'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.stdout == "[]\n", done.stderr
