"""benchmarks/trl_distillation.py: TRL's trainer on the rows of a night."""

from __future__ import annotations

import sys

import pytest

from benchmarks import trl_distillation
from benchmarks.matmul_work import Decoder
from benchmarks.smollm2_rows import SmolNight
from sleep_rl.model.shape import PACKAGED_SHAPES
from tests.fakes.models import make_base


def test_lora_has_about_as_many_parameters_as_an_expert():
    shape = PACKAGED_SHAPES["smollm2-135m-instruct"]
    decoder = Decoder(shape, 64, 15)
    rank = trl_distillation.lora_rank(decoder)
    added = sum(rank * sum(decoder.matrices[name]) for name in ("gate", "up", "down"))
    assert added == pytest.approx(decoder.expert_parameters, rel=0.05)
    assert trl_distillation.lora_rank(Decoder(shape, 1, 15)) == 1


def test_without_trl_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.setattr(sys, "argv", ["trl_distillation"])
    with pytest.raises(SystemExit, match=r"^TRL is missing: .*pip install --target.*$"):
        trl_distillation.main()


@pytest.mark.parametrize("update", trl_distillation.UPDATES)
def test_a_step_trains_the_given_rows(update, tmp_path):
    """Also that all completions are in the loss: TRL counts them itself."""
    pytest.importorskip("trl")
    pytest.importorskip("peft")
    make_base("llama", str(tmp_path / "tiny"), max_position_embeddings=2048)
    small = ["model.format=raw", "model.dtype=float32", "model.memory_layers=1", "sleep.batch=10"]
    night = SmolNight([f"model.base={tmp_path / 'tiny'}", *small])
    trained, seconds = trl_distillation.train(night, night.batches(2), update)
    assert len(seconds) == 2 and min(seconds) > 0
    decoder = Decoder(night.shape, 64, 1)
    rank = trl_distillation.lora_rank(decoder)
    added = sum(rank * sum(decoder.matrices[name]) for name in ("gate", "up", "down"))
    assert trained == (added if update == "lora" else night.shape.parameters)
