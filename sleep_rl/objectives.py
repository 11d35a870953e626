"""Token losses of Knowledge Seeding (paper.md section 3), in pure torch.

Shape suffixes: P loss positions (all sequences of a batch, flattened), D hidden size, V vocabulary.
Every loss here is MINIMISED; the paper's J_KS is maximised, so signs are flipped once, in `l_ks`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sleep_rl.divergences import DIVERGENCES


def divergence(kind: str, teacher_PV: Tensor, student_PV: Tensor, beta: float = 0.5) -> Tensor:
    """Return Div(T||S) [P] of each position over the full vocabulary, in nats and fp32; arguments
    are logits [P, V].

    If one of the models has more ids, which only pad its embedding, Div is that of the two
    distributions given the ids that both have.

    kind: a name of `divergences.DIVERGENCES`; others raise ValueError. beta: of jsd.
    """
    if kind not in DIVERGENCES:
        raise ValueError(f"divergence: {', '.join(DIVERGENCES)} are allowed, got {kind}")
    shared = min(teacher_PV.shape[-1], student_PV.shape[-1])
    log_t_PV = F.log_softmax(teacher_PV[:, :shared].float(), -1)
    log_s_PV = F.log_softmax(student_PV[:, :shared].float(), -1)
    return DIVERGENCES[kind](log_t_PV, log_s_PV, beta)


def seeding_terms(
    head: Callable[[Tensor], Tensor],
    teacher_PD: Tensor,
    student_PD: Tensor,
    token_P: Tensor,
    *,
    kind: str,
    beta: float,
    chunk: int,
    temperature_P: Tensor | None = None,
    teacher_head: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return ([P] divergence, [P] student log-probability of the token) from last hidden states
    [P, D].

    kind, beta: see `divergence`.
    temperature_P: of the teacher's distribution; T becomes T^(1/temperature), normalised. None: 1.
    teacher_head: output head of a teacher that is another model; its hidden size and the padding of
    its vocabulary may differ.

    Logits are computed for `chunk` positions at a time, and recomputed in the backward pass, so
    that no full [P, V] tensors are in memory. Suffix c: the positions of one chunk.
    """

    def terms(
        teacher_cD: Tensor, student_cD: Tensor, token_c: Tensor, temperature_c: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        student_cV = head(student_cD)
        with torch.no_grad():
            teacher_cV = (teacher_head or head)(teacher_cD)
            if temperature_c is not None:
                teacher_cV = teacher_cV.float() / temperature_c[:, None]
        logp_c = F.log_softmax(student_cV.float(), -1).gather(-1, token_c[:, None])[:, 0]
        return divergence(kind, teacher_cV, student_cV, beta), logp_c

    # determinism_check="none": ZeRO-3 gathers the head again for the recomputation, with the same
    # values in another storage.
    tokens = token_P.split(chunk)
    temperatures = [None] * len(tokens) if temperature_P is None else temperature_P.split(chunk)
    parts = [
        checkpoint(terms, *piece, use_reentrant=False, determinism_check="none")
        for piece in zip(
            teacher_PD.split(chunk), student_PD.split(chunk), tokens, temperatures, strict=True
        )
    ]
    return torch.cat([d for d, _ in parts]), torch.cat([p for _, p in parts])


def token_logprobs(
    head: Callable[[Tensor], Tensor], hidden_PD: Tensor, token_P: Tensor, chunk: int
) -> Tensor:
    """Return the log-probability [P] of each token, in nats; logits are computed for `chunk`
    positions at a time.
    """

    def logp(hidden_cD: Tensor, token_c: Tensor) -> Tensor:
        return F.log_softmax(head(hidden_cD).float(), -1).gather(-1, token_c[:, None])[:, 0]

    return torch.cat(
        [
            checkpoint(logp, h, t, use_reentrant=False, determinism_check="none")
            for h, t in zip(hidden_PD.split(chunk), token_P.split(chunk), strict=True)
        ]
    )


def importance_weight(logp_P: Tensor, behaviour_logp_P: Tensor, cap: float) -> Tensor:
    """Return the truncated importance weight [P] min(S(y)/sampler(y), cap) of samples from an older
    version, without gradient.
    """
    return (logp_P.detach() - behaviour_logp_P).exp().clamp(max=cap)


def imitation_loss(
    logp_P: Tensor, behaviour_logp_P: Tensor, advantage_P: Tensor, cap: float
) -> Tensor:
    """Return the score-function loss [P] whose gradient is that of -E_{y~S} r(y) (equation 6, first
    term).
    """
    return -importance_weight(logp_P, behaviour_logp_P, cap) * advantage_P * logp_P


def l_ks(
    divergence_P: Tensor,
    policy_P: Tensor,
    has_reward_P: Tensor,
    alpha: float,
    positions: Tensor,
    rewarded: Tensor,
) -> Tensor:
    """Return the scalar -J_KS = alpha mean(divergence) + (1 - alpha) mean(policy loss over rewarded
    positions) (equation 6).

    divergence_P: with its share of cross entropy (objective.hard_share), and already multiplied by
        the weights of the positions.
    has_reward_P: 1 where the policy loss counts, else 0.
    positions, rewarded: divisors of the two sums, over all micro batches and ranks: the sum of the
    weights (with objective.mean `sequence` that is the number of sequences), and the number of
    rewarded positions; both at least 1.
    """
    seed = divergence_P.sum() / positions.clamp(min=1)
    imitate = (policy_P * has_reward_P).sum() / rewarded.clamp(min=1)
    return alpha * seed + (1 - alpha) * imitate
