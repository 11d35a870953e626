"""Layers that run once on a shared prefix: outputs, gradients and tokens computed."""

import pytest
import torch

from learners.shared_prefix import FEWEST_TOKENS, run_after_prefixes, shared_prefixes
from sleep_rl.contracts.records import STUDENT
from sleep_rl.model.decoder import run_layers
from sleep_rl.model.memory import view_of
from sleep_rl.model.packing import PaddedRows

HEADER = tuple(3 + n % 7 for n in range(FEWEST_TOKENS + 4))
OTHER = tuple(4 + n % 5 for n in range(FEWEST_TOKENS + 1))
PROMPTS = [(*HEADER, 5, 6), (*OTHER, 7), (*HEADER, 9), (*HEADER,), (6, 5), (*HEADER, 5, 8, 8)]
COMPLETIONS = [(6, 7, 2), (4, 2), (2,), (8, 9, 6, 2), (7, 2), (5, 2)]


@pytest.fixture(params=["locked", "upper locked"])
def learner(worker, request):
    learner = worker(kind=request.param)
    learner.open_night(1)
    for expert in learner.module.plastic:  # away from the start, where most gradients vanish
        torch.nn.init.normal_(expert.w_out, std=0.1)
    return learner


def rows_of(numbers):
    prompts = [PROMPTS[n] for n in numbers]
    return PaddedRows.of(prompts, [COMPLETIONS[n] for n in numbers], 0, "cpu")


def whole(learner, rows, hidden_BTD):
    decoder = learner.model.model
    first = learner.module.trunk.first_layer
    return rows.at_positions(run_layers(decoder, hidden_BTD, rows.mask_BT, first=first))


@pytest.mark.parametrize("numbers", [range(6), (0, 2), (0, 3, 5)])
def test_outputs_and_gradients_are_those_of_whole_sequences(learner, numbers):
    rows = rows_of(numbers)
    model = learner.model
    first = learner.module.trunk.first_layer
    weights = torch.randn(len(rows.position_P), model.config.hidden_size)
    results = []
    for run in (
        lambda hidden: whole(learner, rows, hidden),
        lambda hidden: run_after_prefixes(model.model, hidden, rows, shared_prefixes(rows), first),
    ):
        with view_of(model, STUDENT):
            out_PD = run(learner.module.trunk.hidden(model.model, rows))
        gradients = torch.autograd.grad(
            (out_PD * weights).sum(), list(learner.module.plastic.parameters())
        )
        results.append((out_PD, *gradients))
    assert any(gradient.abs().max() > 1e-3 for gradient in results[0][1:])
    for want, got in zip(*results, strict=True):
        assert torch.allclose(got, want, rtol=1e-3, atol=1e-5)


def test_a_shared_prefix_is_computed_once(learner):
    rows = rows_of(range(6))
    layer = learner.model.model.layers[-1]
    computed = []
    hook = layer.register_forward_hook(lambda module, args, output: computed.append(args[0].shape))
    first = learner.module.trunk.first_layer
    with torch.no_grad(), view_of(learner.model, STUDENT):
        inputs_BTD = learner.module.trunk.hidden(learner.model.model, rows)
        del computed[:]
        groups = shared_prefixes(rows)
        run_after_prefixes(learner.model.model, inputs_BTD, rows, groups, first)
    hook.remove()
    # the last token of the shortest prompt, which is the header, predicts its completion
    shared = len(HEADER) - 1
    assert [tuple(shape[:2]) for shape in computed] == [
        (1, shared),
        (4, max(len(PROMPTS[n] + COMPLETIONS[n]) for n in (0, 2, 3, 5)) - shared),
        (2, len(PROMPTS[1] + COMPLETIONS[1])),  # share nothing, and are one pass
    ]


@pytest.mark.parametrize("numbers", [(3,), (1, 4), (0, 1)])
def test_sequences_that_share_too_little_have_no_groups(numbers):
    assert shared_prefixes(rows_of(numbers)) == []


def test_groups_of_sequences_that_begin_alike():
    groups = shared_prefixes(rows_of(range(6)))
    assert groups == [([0, 2, 3, 5], len(HEADER) - 1), ([1, 4], 0)]
