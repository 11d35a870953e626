"""Divergences Div(T||S) of equations 3 and 6, by the names that objective.divergence allows.

A function takes log-probabilities [P, V] of teacher and student, and beta (of jsd only), and
returns [P] nats. Shape suffixes: P positions, V vocabulary. torch is imported by no statement at
the top of this file: the config reads the names in processes that need no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def forward_kl(log_t_PV: Tensor, log_s_PV: Tensor, beta: float) -> Tensor:
    """Return KL(T||S) = sum_v T log(T/S)."""
    return (log_t_PV.exp() * (log_t_PV - log_s_PV)).sum(-1)


def reverse_kl(log_t_PV: Tensor, log_s_PV: Tensor, beta: float) -> Tensor:
    """Return KL(S||T) = sum_v S log(S/T)."""
    return (log_s_PV.exp() * (log_s_PV - log_t_PV)).sum(-1)


def jsd(log_t_PV: Tensor, log_s_PV: Tensor, beta: float) -> Tensor:
    """Return beta KL(T||M) + (1-beta) KL(S||M) with M = beta T + (1-beta) S, beta inside (0, 1).

    It tends to 0 at both end points, so forward_kl and reverse_kl are no limits of it.
    """
    import torch

    log_beta = torch.tensor([beta, 1 - beta], device=log_t_PV.device).log()
    log_m_PV = torch.logsumexp(torch.stack([log_t_PV + log_beta[0], log_s_PV + log_beta[1]]), 0)
    teacher_kl = (log_t_PV.exp() * (log_t_PV - log_m_PV)).sum(-1)
    student_kl = (log_s_PV.exp() * (log_s_PV - log_m_PV)).sum(-1)
    return beta * teacher_kl + (1 - beta) * student_kl


DIVERGENCES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    function.__name__: function for function in (forward_kl, reverse_kl, jsd)
}
"""Name -> function. A new divergence is one function above and its name in this table."""
