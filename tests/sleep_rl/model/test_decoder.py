"""Running layers one by one is running the decoder; with gradient checkpointing nothing changes but
the memory.
"""

from contextlib import nullcontext

import pytest
import torch
from torch.utils.checkpoint import CheckpointError

from sleep_rl.contracts.records import STUDENT
from sleep_rl.model import checkpoints
from sleep_rl.model.decoder import run_layers
from sleep_rl.model.families import FAMILIES
from sleep_rl.model.memory import Expert, memory_levels, patch, view_of
from sleep_rl.model.modeling import CLASSES
from sleep_rl.model.shape import parse_shape
from sleep_rl.plan.sizes import saved_bytes
from tests.fakes.configs import toy

IDS_BT = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 0, 0, 0]])
MASK_BT = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_in_two_parts_are_the_decoder(family, sleep_checkpoint):
    model = checkpoints.load(sleep_checkpoint(family, "dense"))
    decoder = model.model
    with torch.no_grad():
        want = decoder(input_ids=IDS_BT, attention_mask=MASK_BT).last_hidden_state
        start = decoder.embed_tokens(IDS_BT)
        whole = run_layers(decoder, start, MASK_BT)
        below = run_layers(decoder, start, MASK_BT, last=1)
        parts = run_layers(decoder, below, MASK_BT, first=1)
    assert torch.equal(decoder.norm(whole), want)
    assert torch.equal(parts, whole) and not torch.allclose(below, whole)


def student_gradients(model, recomputed_in):
    """Gradients of a new expert in every layer, from a backward pass outside of the student's
    view.
    """
    experts = {
        name: {1: Expert(level.router[1], level.w_in[1], level.w_out[1])}
        for name, level in memory_levels(model).items()
    }
    for rows in experts.values():
        torch.nn.init.normal_(rows[1].w_out, std=0.1, generator=torch.Generator().manual_seed(0))
    patch(model, experts)
    with view_of(model, STUDENT):
        start = model.model.embed_tokens(IDS_BT)
        out = run_layers(model.model, start, MASK_BT, recomputed_in=recomputed_in)
    (out * MASK_BT[..., None]).square().sum().backward()
    return [p.grad for rows in experts.values() for p in rows[1].parameters()]


def test_gradients_are_those_of_the_student_whether_kept_or_computed_again(sleep_checkpoint):
    model = checkpoints.load(sleep_checkpoint("qwen3", "locked"))
    kept = student_gradients(model, None)
    again = student_gradients(model, lambda: view_of(model, STUDENT))
    assert all(float(grad.abs().max()) > 0 for grad in kept)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(kept, again, strict=True))
    with pytest.raises(CheckpointError):  # in the teacher's view the experts are not there
        student_gradients(model, nullcontext)


def saved_for_backward(layers, checkpointing):
    """Bytes that a pass of a bf16 model saves for its backward pass, beside weights."""
    config_class, model_class = CLASSES["qwen3"]
    config = config_class(
        vocab_size=100,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        memory_levels=[{"experts": 1, "d_low": 1, "top_k": 1}],
    )
    model = model_class(config).bfloat16().requires_grad_(False)
    experts = {
        name: {1: Expert(level.router[1], level.w_in[1], level.w_out[1])}
        for name, level in memory_levels(model).items()
    }
    patch(model, experts)
    weights = {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
    weights |= {p.untyped_storage().data_ptr() for e in experts.values() for p in e[1].parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that none comes twice
        return tensor

    ids_BT = torch.randint(1, 100, (4, 64))
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, 32:] = 0
    context = (lambda: view_of(model, STUDENT)) if checkpointing else None
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, view_of(model, STUDENT):
        run_layers(model.model, model.model.embed_tokens(ids_BT), mask_BT, recomputed_in=context)
    return sum(size for size, _ in saved.values()), ids_BT.numel(), config


@pytest.mark.parametrize("checkpointing", [False, True])
def test_plan_knows_what_is_saved_for_the_backward_pass(checkpointing):
    """What a further layer adds."""
    two, tokens, _ = saved_for_backward(2, checkpointing)
    five, _, config = saved_for_backward(5, checkpointing)
    learner = toy(model={"dtype": "bfloat16"}, learners={"gradient_checkpointing": checkpointing})
    fields = config.to_dict() | {"model_type": "qwen3"}
    planned = [
        saved_bytes(learner, parse_shape(fields | {"num_hidden_layers": n}, "test")) for n in (2, 5)
    ]
    assert (five - two) / tokens == pytest.approx(planned[1] - planned[0], rel=0.2)
