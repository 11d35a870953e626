"""The Gram matrix of gradients against one backward pass per text."""

import pytest
import torch

from learners.gradient_gram import gram_matrix
from sleep_rl.model import checkpoints
from sleep_rl.model.memory import BASE_SLOT, LOCKED, PARTS, memory_levels

TEXTS = [
    ((5, 6), (7, 8, 9, 1)),
    ((5,), (30, 31, 32, 33, 34, 35, 1)),
    ((5, 6, 7), (40, 1)),
    ((5,), (7, 8, 1)),
]


def slow_gram(model, texts):
    """<grad l_i, grad l_j> over router, A and B of every unlocked expert, one text and one backward
    pass at a time.
    """
    levels = memory_levels(model).values()
    tensors = [getattr(level, part) for level in levels for part in PARTS]
    rows = []
    for prompt, completion in texts:
        for tensor in tensors:
            tensor.requires_grad_()
        logits = model(torch.tensor([prompt + completion])).logits[0]
        logp = logits[len(prompt) - 1 : -1].log_softmax(-1)
        loss = -sum(logp[t, token] for t, token in enumerate(completion)) / len(completion)
        grads = torch.autograd.grad(loss, tensors)
        flat = []
        for level, triple in zip(
            levels, (grads[i : i + 3] for i in range(0, len(grads), 3)), strict=True
        ):
            for slot, state in enumerate(level.state.tolist()):
                if state != LOCKED and slot != BASE_SLOT:
                    flat += [grad[slot].flatten() for grad in triple]
        rows.append(torch.cat(flat))
        for tensor in tensors:
            tensor.requires_grad_(False)
    matrix = torch.stack(rows).double()
    return matrix @ matrix.T


@pytest.mark.parametrize("kind", ["dense", "sparse", "upper"])
def test_the_gram_matrix_equals_that_of_single_backward_passes(sleep_checkpoint, kind):
    model = checkpoints.load(sleep_checkpoint("qwen3", kind))
    want = slow_gram(model, TEXTS)
    got = gram_matrix(model, TEXTS, pad=0)
    assert got.shape == (4, 4) and want.abs().min() > 0
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-6 * float(want.diagonal().max()))
    assert all(
        not parameter.requires_grad and parameter.grad is None for parameter in model.parameters()
    )
    assert torch.equal(got, gram_matrix(model, TEXTS, pad=0))  # no hook is left
    for budget in (1, 10, 20):  # in passes of one, two and three texts, the logits in pieces
        assert torch.allclose(
            gram_matrix(model, TEXTS, pad=0, budget=budget, chunk=2), got, rtol=1e-4, atol=1e-7
        )
        part = gram_matrix(model, TEXTS, pad=0, whole=False, budget=budget)
        needed = torch.eye(4, dtype=torch.bool)
        needed[3] = True
        needed[:, 3] = True
        assert (
            torch.allclose(part[needed], got[needed], rtol=1e-4, atol=1e-7)
            and not part[~needed].any()
        )


def test_the_diagonal_equals_that_of_single_texts(sleep_checkpoint):
    model = checkpoints.load(sleep_checkpoint("llama", "dense"))
    whole = gram_matrix(model, TEXTS, pad=0)
    for i, text in enumerate(TEXTS):
        assert float(gram_matrix(model, [text], pad=0)) == pytest.approx(
            float(whole[i, i]), rel=1e-4
        )


def test_without_an_unlocked_expert_it_raises(sleep_checkpoint):
    with pytest.raises(ValueError, match="no expert is unlocked"):
        gram_matrix(checkpoints.load(sleep_checkpoint("qwen3", "locked")), TEXTS, pad=0)
