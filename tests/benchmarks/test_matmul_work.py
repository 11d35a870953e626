"""benchmarks/matmul_work.py: operations of a decoder, counted over the modules of a tiny one."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import matmul_work
from benchmarks.matmul_work import Decoder, Rate, Work
from sleep_rl.contracts.records import STUDENT
from sleep_rl.model import checkpoints
from sleep_rl.model.decoder import run_layers
from sleep_rl.model.memory import Expert, memory_levels, patch, view_of
from sleep_rl.model.shape import checkpoint_shape
from tests.fakes.models import LEVELS, make_base

TOKENS = 7
RANK = LEVELS["upper"][0]["d_low"]
COMPUTED = 2  # experts: the new one in slot 1, and the locked one in front of it


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base("llama", str(tmp_path_factory.mktemp("base") / "tiny"), num_hidden_layers=3)


def decoder_of(base, first_layer):
    return Decoder(checkpoint_shape(base), RANK, first_layer)


def attention_of(decoder, past=0):
    """Return the operations of one layer's attention, pair by pair."""
    pairs = sum(1 for i in range(past, past + TOKENS) for _ in range(i + 1))
    return pairs * 2 * 2 * decoder.shape.heads * decoder.shape.head_dim


def products(counter):
    """Return the operations of matrix products; those of attention and positions are others."""
    counts = counter.get_flop_counts()["Global"]
    return sum(n for op, n in counts.items() if op.__name__.split(".")[0] in ("mm", "addmm"))


@pytest.mark.parametrize("first_layer", [0, 1, 2])
def test_a_students_passes_are_counted_as_torch_counts_them(base, first_layer):
    level = {"experts": 4, "d_low": RANK, "top_k": 4}
    if first_layer:
        level["first_layer"] = first_layer
    model = checkpoints.load(base, [level])
    stored = memory_levels(model)
    rows = {
        name: {1: Expert(level.router[1], level.w_in[1], torch.randn_like(level.w_out[1]))}
        for name, level in stored.items()
    }
    patch(model, rows)
    ids_BT = torch.arange(TOKENS)[None] + 5
    decoder = decoder_of(base, first_layer)
    attention = attention_of(decoder)
    with view_of(model, STUDENT):
        with FlopCounterMode(display=False) as forward:
            hidden_BTD = run_layers(
                model.model, model.model.embed_tokens(ids_BT), torch.ones_like(ids_BT)
            )
        with FlopCounterMode(display=False) as backward:
            hidden_BTD.sum().backward()
    assert products(forward) == decoder.forward(TOKENS, experts=COMPUTED) - 3 * attention
    above = 3 - first_layer - 1
    assert products(backward) == decoder.backward(TOKENS, experts=COMPUTED) - 2 * above * attention


def test_a_forward_pass_and_the_head_are_counted_as_a_loop_over_the_modules_does(base):
    model = checkpoints.load(base, LEVELS["upper locked"])
    counted = {"layers": 0, "head": 0}

    def count(name):
        def hook(module, inputs, _):
            rows = inputs[0][..., 0].numel()
            counted[name] += 2 * rows * module.in_features * module.out_features

        return hook

    for module in model.model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(count("layers"))
    model.lm_head.register_forward_hook(count("head"))
    model(torch.arange(TOKENS)[None])
    decoder = decoder_of(base, 1)
    assert decoder.forward(TOKENS) == counted["layers"] + 3 * attention_of(decoder)
    assert decoder.head(TOKENS) == counted["head"]


def test_parts_of_a_pass_add_up_to_the_whole(base):
    decoder = decoder_of(base, 1)
    below = decoder.forward(TOKENS, last=1, experts=1)
    assert below + decoder.forward(TOKENS, first=1, experts=1) == decoder.forward(TOKENS, experts=1)
    behind = decoder.forward(TOKENS, past=5)
    assert decoder.forward(5) + behind == decoder.forward(5 + TOKENS)
    assert behind - decoder.forward(TOKENS) == 3 * (
        attention_of(decoder, 5) - attention_of(decoder)
    )


def test_an_expert_has_the_parameters_of_a_level_s_slot(base):
    model = checkpoints.load(base, LEVELS["upper"])
    level = next(iter(memory_levels(model).values()))
    slot = level.router[1].numel() + level.w_in[1].numel() + level.w_out[1].numel()
    assert decoder_of(base, 1).expert_parameters == slot


def test_a_rate_turns_operations_into_seconds(base, monkeypatch):
    assert Rate(layers=100.0, head=50.0).seconds(Work(8, layers=300, head=25)) == 3.5
    monkeypatch.setattr(matmul_work, "SECONDS", 0.0)
    before = torch.get_num_threads()
    try:
        rate = matmul_work.measured_rate(decoder_of(base, 1), "float32", 4, threads=1)
    finally:
        torch.set_num_threads(before)
    assert 0 < rate.layers < float("inf") and 0 < rate.head < float("inf")
