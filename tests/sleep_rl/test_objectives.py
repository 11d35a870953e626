"""Losses compared with slow references in the paper's indices (equations 3 and 6)."""

import math

import pytest
import torch

from sleep_rl.config.objective import Objective
from sleep_rl.divergences import DIVERGENCES
from sleep_rl.objectives import (
    divergence,
    imitation_loss,
    importance_weight,
    l_ks,
    seeding_terms,
    token_logprobs,
)


def softmax(logits):
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / sum(weights) for w in weights]


def kl(p, q):
    return sum(p_v * (math.log(p_v) - math.log(q_v)) for p_v, q_v in zip(p, q, strict=True))


def slow_jsd(t, s, beta):
    m = [beta * t_v + (1 - beta) * s_v for t_v, s_v in zip(t, s, strict=True)]
    return beta * kl(t, m) + (1 - beta) * kl(s, m)


SLOW_DIVERGENCES = {
    "forward_kl": lambda t, s, beta: kl(t, s),
    "reverse_kl": lambda t, s, beta: kl(s, t),
    "jsd": slow_jsd,
}


def slow_divergence(kind, teacher, student, beta):
    return SLOW_DIVERGENCES[kind](softmax(teacher), softmax(student), beta)


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(7, 11, generator=generator) * 3 for _ in range(2)]


def test_every_divergence_has_a_reference():
    allowed = Objective.__dataclass_fields__["divergence"].metadata["choices"]
    assert list(allowed) == list(DIVERGENCES) == list(SLOW_DIVERGENCES)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_divergence_equals_its_definition(kind, beta, logits):
    teacher, student = logits
    slow = [
        slow_divergence(kind, t, s, beta)
        for t, s in zip(teacher.tolist(), student.tolist(), strict=True)
    ]
    assert torch.allclose(divergence(kind, teacher, student, beta), torch.tensor(slow), atol=1e-5)


@pytest.mark.parametrize("sizes", [(11, 8), (8, 11)])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_padded_vocabulary_ids_are_ignored(kind, sizes, logits):
    teacher, student = (tensor[:, :size] for tensor, size in zip(logits, sizes, strict=True))
    slow = [
        slow_divergence(kind, t[:8], s[:8], 0.3)
        for t, s in zip(teacher.tolist(), student.tolist(), strict=True)
    ]
    assert torch.allclose(divergence(kind, teacher, student, 0.3), torch.tensor(slow), atol=1e-5)
    heads = [torch.nn.Linear(4, size, bias=False) for size in sizes]
    teacher_PD, student_PD = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(1))
    token_P = torch.arange(7)
    got, logp = seeding_terms(
        heads[1],
        teacher_PD,
        student_PD,
        token_P,
        kind=kind,
        beta=0.3,
        chunk=3,
        teacher_head=heads[0],
    )
    with torch.no_grad():
        want = divergence(kind, heads[0](teacher_PD), heads[1](student_PD), 0.3)
        all_P = heads[1](student_PD).log_softmax(-1)[token_P, token_P]
    assert torch.allclose(got, want, atol=1e-6)
    assert torch.allclose(logp, all_P, atol=1e-6)  # of the student's own distribution


def test_divergence_by_hand_on_three_tokens():
    teacher = torch.tensor([[0.5, 0.25, 0.25]]).log()
    student = torch.tensor([[0.25, 0.5, 0.25]]).log()
    assert divergence("forward_kl", teacher, student).item() == pytest.approx(0.25 * math.log(2))
    assert divergence("reverse_kl", teacher, student).item() == pytest.approx(0.25 * math.log(2))


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_divergence_of_equal_distributions_is_zero_with_zero_gradient(kind, logits):
    student = logits[0].clone().requires_grad_()
    total = divergence(kind, logits[0], student).sum()
    total.backward()
    assert total.abs().item() < 1e-5 and student.grad.abs().max().item() < 1e-6


def test_forward_kl_gradient_is_student_minus_teacher(logits):
    teacher = logits[0]
    student = logits[1].clone().requires_grad_()
    divergence("forward_kl", teacher, student).sum().backward()
    assert torch.allclose(
        student.grad, student.detach().softmax(-1) - teacher.softmax(-1), atol=1e-5
    )


def test_jsd_tends_to_zero_at_its_end_points(logits):
    teacher, student = logits
    assert (
        divergence("jsd", teacher, student, 1e-6).max()
        < 1e-3
        < divergence("forward_kl", teacher, student).min()
    )


def test_an_unknown_divergence_is_refused(logits):
    with pytest.raises(ValueError, match=f"{', '.join(DIVERGENCES)} are allowed, got kl"):
        divergence("kl", *logits)


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("temperature", [None, torch.linspace(0.3, 1.2, 10)])
def test_chunked_terms_equal_the_whole_in_value_and_gradient(chunk, temperature):
    torch.manual_seed(1)
    head = torch.nn.Linear(5, 11, bias=False)
    teacher = torch.randn(10, 5)
    token = torch.randint(0, 11, (10,))
    hidden = torch.randn(10, 5)

    def grads(compute):
        student = hidden.clone().requires_grad_()
        div, logp = compute(student)
        (div.sum() + 2 * logp.sum()).backward()
        return div.detach(), logp.detach(), student.grad

    def whole(student):
        logits = head(student)
        logp = logits.log_softmax(-1)[torch.arange(10), token]
        p = head(teacher).detach().softmax(-1)
        raised = (
            p
            if temperature is None
            else torch.stack([row ** (1 / t) for row, t in zip(p, temperature, strict=True)])
        )
        return divergence("jsd", (raised / raised.sum(-1, keepdim=True)).log(), logits, 0.3), logp

    fast = grads(
        lambda s: seeding_terms(
            head, teacher, s, token, kind="jsd", beta=0.3, chunk=chunk, temperature_P=temperature
        )
    )
    for got, want in zip(fast, grads(whole), strict=True):
        assert torch.allclose(got, want, atol=1e-5)
    only = token_logprobs(head, hidden, token, chunk)
    assert torch.allclose(only, fast[1], atol=1e-6)


def test_memory_is_bounded_by_the_chunk():
    seen = []

    class Head(torch.nn.Linear):
        def forward(self, hidden):
            seen.append(hidden.shape[0])
            return super().forward(hidden)

    head = Head(4, 9)
    student = torch.randn(50, 4, requires_grad=True)
    div, logp = seeding_terms(
        head,
        torch.randn(50, 4),
        student,
        torch.randint(0, 9, (50,)),
        kind="forward_kl",
        beta=0.5,
        chunk=8,
    )
    (div.sum() + logp.sum()).backward()
    # forward and recomputed in backward, teacher and student
    assert max(seen) == 8 and sum(seen) >= 2 * 2 * 50


def test_imitation_gradient_is_the_score_function():
    """-d/dtheta E_{y~S} r(y), estimated on the exact distribution, equals the analytic gradient."""
    logits = torch.randn(6, generator=torch.Generator().manual_seed(2)).requires_grad_()
    reward = torch.tensor([0.0, 1.0, 0.5, 0.0, 0.2, 0.9])
    expected_reward = (logits.softmax(-1) * reward).sum()
    (analytic,) = torch.autograd.grad(-expected_reward, logits)
    log_s = logits.log_softmax(-1)
    p = log_s.detach().exp()
    # expectation over y ~ S, on policy
    loss = (p * imitation_loss(log_s, log_s.detach(), reward, cap=2.0)).sum()
    (estimated,) = torch.autograd.grad(loss, logits)
    assert torch.allclose(estimated, analytic, atol=1e-6)


def test_truncated_importance_weight():
    now = torch.tensor([-1.0, -1.0, -3.0])
    then = torch.tensor([-1.0, -4.0, -1.0])
    assert torch.allclose(
        importance_weight(now, then, 2.0), torch.tensor([1.0, 2.0, math.exp(-2.0)])
    )


def test_l_ks_combines_both_terms_with_global_counts():
    div = torch.tensor([1.0, 2.0, 3.0])
    policy = torch.tensor([5.0, 7.0, 11.0])
    rewarded = torch.tensor([1.0, 0.0, 1.0])
    got = l_ks(div, policy, rewarded, 0.25, torch.tensor(6.0), torch.tensor(4.0))
    assert got.item() == pytest.approx(0.25 * 6 / 6 + 0.75 * 16 / 4)
    assert l_ks(
        div, policy, rewarded * 0, 0.5, torch.tensor(0.0), torch.tensor(0.0)
    ).item() == pytest.approx(3.0)
