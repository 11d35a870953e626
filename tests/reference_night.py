"""One night of one memory level, in plain torch with loops. Read this first.

A model has read a document while awake. In the night its smaller self, the teacher, still has the
document in context and writes about it. The student, the same frozen base with one more expert, has
no document; it learns to give the same next tokens. Numbers in brackets are the equations of the
specification. Indices: i layer, l memory level, s slot of a level, t token, n row, v vocabulary.
`tests/learners/test_reference_night.py` compares this with the real learner and the real night.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Ids = tuple[int, ...]
Expert = dict[str, Tensor]  # router [D], w_in = (A1, A2) [2L, D], w_out = B [L, D]
Memory = dict[tuple[int, int], dict[int, Expert]]  # (i, l) -> slot in use -> expert


@dataclass(frozen=True)
class Row:
    """One sequence of D: what student and teacher read, and the tokens on which they are
    compared.
    """

    student_T: Ids  # without the document
    teacher_T: Ids  # with it
    completion_T: Ids
    x_length: int = 0  # leading tokens that the model asked itself; the rest is the answer y
    advantage: float | None = None  # of a student's own sample
    sampled_T: tuple[float, ...] = ()  # log-probability of each token when it was sampled


def expert_output(x: Tensor, expert: Expert) -> Tensor:
    """g(x) B^T (silu(A1 x) * (A2 x)), with the gate g = sigmoid(router x)."""
    a1, a2 = expert["w_in"].chunk(2)
    gate = torch.sigmoid(expert["router"] @ x)
    return gate * (expert["w_out"].T @ (torch.nn.functional.silu(a1 @ x) * (a2 @ x)))


def chain(x_TD: Tensor, i: int, memory: Memory) -> Tensor:
    """y_t = MLP(f_k)(...MLP(f_1)(x_t)) in front of layer i's frozen MLP, level by level.
    (1)
    """
    for l in sorted(level for layer, level in memory if layer == i):  # noqa: E741 (the paper's l)
        rows = []
        for x in x_TD:
            y = x
            for s in memory[i, l]:
                y = y + expert_output(x, memory[i, l][s])
            rows.append(y)
        x_TD = torch.stack(rows)
    return x_TD


def logprobs(base: torch.nn.Module, memory: Memory, prompt_T: Ids, completion_T: Ids) -> Tensor:
    """[T, V] log-probabilities of the next token at each token of the completion."""
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, x, i=i: (chain(x[0][0], i, memory)[None],))
        for i, layer in enumerate(base.model.layers)
    ]
    logits_TV = base(torch.tensor([prompt_T + completion_T])).logits[0]
    for hook in hooks:
        hook.remove()
    return logits_TV[len(prompt_T) - 1 : -1].log_softmax(-1)


def wake(
    base: torch.nn.Module, memory: Memory, own: Memory, documents: list[Ids], eta: float
) -> Memory:
    """theta(i+1) = theta(i) - sum over the chunk of eta_t grad: a level's own weights, slot 0.
    (2)
    """
    leaves = [p.requires_grad_(True) for slots in own.values() for p in slots[0].values()]
    active = {key: {**own[key], **memory[key]} for key in memory}
    total = [torch.zeros_like(p) for p in leaves]
    for document in documents:
        logp_TV = logprobs(base, active, document[:1], document[1:])
        loss = -sum(logp_TV[t, v] for t, v in enumerate(document[1:])) / (len(document) - 1)
        for n, gradient in enumerate(torch.autograd.grad(loss, leaves)):
            total[n] += eta * gradient
    moved = iter(p.detach() - step for p, step in zip(leaves, total, strict=True))
    return {key: {0: {part: next(moved) for part in own[key][0]}} for key in own}


def levenshtein(a: Ids, b: Ids) -> int:
    """z(a, b): insertions, deletions and substitutions that turn a into b."""
    z = {(m, 0): m for m in range(len(a) + 1)} | {(0, n): n for n in range(len(b) + 1)}
    for m in range(1, len(a) + 1):
        for n in range(1, len(b) + 1):
            changed = z[m - 1, n - 1] + (a[m - 1] != b[n - 1])
            z[m, n] = min(z[m - 1, n] + 1, z[m, n - 1] + 1, changed)
    return z[len(a), len(b)]


def reward(student_T: Ids, teacher_T: Ids, z0: float, gamma: float, r_sem: float) -> float:
    """gamma r_sem + (1 - gamma) r_abs, r_abs = 1 - z / max length if z <= z0 of it, else 0. (4,
    5)
    """
    longest = max(len(student_T), len(teacher_T))
    z = levenshtein(student_T, teacher_T)
    r_abs = 1 - z / longest if z <= z0 * longest else 0.0
    return gamma * r_sem + (1 - gamma) * r_abs


def advantages(rewards_G: list[float]) -> list[float]:
    """(r - mean) / standard deviation over the completions of one prefix (GRPO)."""
    mean = sum(rewards_G) / len(rewards_G)
    deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards_G) / (len(rewards_G) - 1))
    return [(r - mean) / (deviation + 1e-6) for r in rewards_G]


def l_ks(base, teacher: Memory, student: Memory, rows: list[Row], options: dict) -> Tensor:
    """alpha mean of KL(T||S) + (1 - alpha) mean of the imitation loss: minimised.           (3,
    6)
    """
    divergence = imitation = torch.zeros(())
    weights = sampled = 0.0
    for row in rows:
        with torch.no_grad():
            t_TV = logprobs(base, teacher, row.teacher_T, row.completion_T)
        s_TV = logprobs(base, student, row.student_T, row.completion_T)
        for t, v in enumerate(row.completion_T):
            weight = options["prompt_weight"] if t < row.x_length else 1.0
            divergence = divergence + weight * (t_TV[t].exp() * (t_TV[t] - s_TV[t])).sum()
            weights += weight
            if row.advantage is not None:
                ratio = min(math.exp(s_TV[t, v].item() - row.sampled_T[t]), options["cap"])
                imitation = imitation - ratio * row.advantage * s_TV[t, v]
                sampled += 1
    alpha = options["alpha"]
    return alpha * divergence / weights + (1 - alpha) * imitation / max(sampled, 1)


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then linear decay to zero."""
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * (steps - step) / max(steps - warmup, 1)


def night(
    base: torch.nn.Module,
    teacher: Memory,
    new: Memory,
    moved: Memory,
    batches: list[list[Row]],
    options: dict,
) -> tuple[Memory, list[float]]:
    """Consolidate the context window into level 1 (section 3). Returns (memory, loss of each step).

    `teacher`: slots in use before the night. `new`: the one expert per layer that is unlocked.
    `moved`: own weights that `wake` gave the levels that are due.
    """
    # (a) compute: the student has the prospective own weights and one more expert.
    trained = [
        p.requires_grad_(True) for slots in new.values() for e in slots.values() for p in e.values()
    ]
    student = {key: {**teacher[key], **moved.get(key, {}), **new.get(key, {})} for key in teacher}
    # (b) consolidate: AdamW on L_KS over the new expert; everything else is frozen.
    first = [torch.zeros_like(p) for p in trained]
    second = [torch.zeros_like(p) for p in trained]
    losses = []
    for step, rows in enumerate(batches):
        loss = l_ks(base, teacher, student, rows, options)
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, trained)
        rate = learning_rate(step, options["steps"], options["lr"], options["warmup"])
        for p, g, m, v in zip(trained, gradients, first, second, strict=True):
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.99).add_(0.01 * g * g)
            unbiased = (v / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8
            p.data -= rate * (m / (1 - 0.9 ** (step + 1))) / unbiased
    # (c) update: the student is the memory from now on.
    return student, losses
