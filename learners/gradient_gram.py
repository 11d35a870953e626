"""Gram matrix of per-text gradients (paper.md section 4, step 2), without a backward pass per text.

For loss l_i of text i the matrix holds <grad l_i, grad l_j> over the low-rank parameters: the
unlocked experts of every memory level and their router rows. Texts go through in passes over texts
of like length, forward and backward once; each level then makes its own part from its input and the
gradient of its output. Only the last text's gradient is kept, to be multiplied with the others';
for the whole matrix, all of them are, in host memory.

Shape suffixes: N texts, T tokens, P loss positions, D model width, S unlocked experts of a level,
L = d_low, E elements of a parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learners.passes import split_into_passes
from sleep_rl.contracts.records import TEACHER
from sleep_rl.model.memory import (
    ACTIVE,
    BASE_SLOT,
    LOCKED,
    MemoryLevel,
    first_layer,
    memory_levels,
    view_of,
)
from sleep_rl.model.packing import PaddedRows
from sleep_rl.objectives import token_logprobs

Text = tuple[tuple[int, ...], tuple[int, ...]]
"""(prompt_T, completion_T); the loss falls on the completion."""


class Gradients(NamedTuple):
    """Gradients of the texts of a pass."""

    numbers: list[int]  # of the texts
    parts: list[Tensor]  # [N, E] per level and parameter, one row per text


def gram_matrix(
    model: nn.Module,
    texts_N: Sequence[Text],
    pad: int,
    *,
    whole: bool = True,
    budget: int = 4096,
    chunk: int = 1024,
) -> Tensor:
    """Return the [N, N] inner products of the gradients of each text's loss: cross entropy of the
    completion in nats per token, in the stored (TEACHER) state.

    whole: False for the diagonal and the products with the last text only; the rest is 0.
    budget: padded tokens of a pass.
    chunk: positions whose logits live at once.

    Raises ValueError when no expert is unlocked.
    """
    if not any(_unlocked(level) for level in memory_levels(model).values()):
        raise ValueError(
            "no expert is unlocked, so there is no low-rank parameter to take gradients of"
        )
    count = len(texts_N)
    last = count - 1
    out_NN = torch.zeros(count, count, dtype=torch.float64)
    kept: list[Gradients] = []
    lengths = [len(prompt) + len(completion) for prompt, completion in texts_N]
    # the last text first and alone: the others are multiplied with it
    for numbers in [[last], *split_into_passes(lengths[:last], budget)]:
        new = Gradients(numbers, _gradients(model, [texts_N[n] for n in numbers], pad, chunk))
        for earlier in [*kept, new]:
            block = _products(new.parts, earlier.parts)
            rows = torch.tensor(numbers)
            columns = torch.tensor(earlier.numbers)
            out_NN[columns[:, None], rows] = block.T
            out_NN[rows[:, None], columns] = block
        if whole:
            kept.append(Gradients(numbers, [part.cpu() for part in new.parts]))
        elif not kept:
            kept.append(new)
    if not whole:
        wanted_NN = torch.eye(count, dtype=torch.bool)
        wanted_NN[last] = True
        wanted_NN[:, last] = True
        out_NN[~wanted_NN] = 0.0
    return out_NN


def _products(parts: list[Tensor], other_parts: list[Tensor]) -> Tensor:
    """Return the inner products [N, M] of two lists of gradients, in float64 on the CPU."""
    block_NM = torch.zeros(len(parts[0]), len(other_parts[0]), dtype=torch.float64)
    for part_NE, other_ME in zip(parts, other_parts, strict=True):
        block_NM += (part_NE @ other_ME.to(part_NE).T).double().cpu()
    return block_NM


def _gradients(model: nn.Module, texts_N: Sequence[Text], pad: int, chunk: int) -> list[Tensor]:
    """Return the gradients [N, E] per level and parameter, one row per text."""
    parts: list[Tensor] = []

    def watch(level: MemoryLevel, inputs: tuple[Tensor], out_NTD: Tensor) -> None:
        x_NTD = inputs[0].detach()
        if out_NTD.requires_grad:
            out_NTD.register_hook(
                lambda grad_NTD: parts.extend(level_gradients(level, x_NTD, grad_NTD))
            )

    levels = [level for level in memory_levels(model).values() if _unlocked(level)]
    handles = [level.register_forward_hook(watch) for level in levels]
    # all parameters are frozen, so the graph must start below the lowest memory
    lowest = model.model.layers[first_layer(model.config.memory_levels)]
    handles.append(
        lowest.register_forward_pre_hook(lambda _, inputs: (inputs[0].requires_grad_(),))
    )
    try:
        with torch.enable_grad(), view_of(model, TEACHER):
            _loss(model, texts_N, pad, chunk).backward()
    finally:
        for handle in handles:
            handle.remove()
    return parts


def _unlocked(level: MemoryLevel) -> list[int]:
    """Return the slots of the unlocked consolidation experts in the current view."""
    states = level.states().tolist()
    return [s for s, state in enumerate(states) if state != LOCKED and s != BASE_SLOT]


@torch.no_grad()
def level_gradients(
    level: MemoryLevel, x_NTD: Tensor, dy_NTD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of router [N, S*D], w_in [N, S*2L*D] and w_out [N, S*L*D] of the
    unlocked experts, one row per text.

    x_NTD: input of the level. dy_NTD: gradient of the loss with respect to its output y.

    The level computes (see `MemoryLevel`), with u_s = A1_s x and v_s = A2_s x,

        y = x + sum_s g_s B_s^T h_s,   h_s = silu(u_s) * v_s,   g_s = sigmoid(r_s . x).

    With o_s = B_s dy, the gradient of g_s h_s [L], and sigma(u) = sigmoid(u), per token

        dB_s = (g_s h_s) dy^T
        dr_s = (o_s . h_s) g_s (1 - g_s) x
        du_s = g_s o_s * v_s * sigma(u_s) * (1 + u_s * (1 - sigma(u_s)))     (silu' of u_s)
        dv_s = g_s o_s * silu(u_s)
        dA_s = [du_s; dv_s] x^T

    summed over the tokens of a text. The selection by top-k is treated as constant. Padding has
    dy = 0, as no loss depends on it.
    """
    state = level.states()
    slots = _unlocked(level)
    w_in = level.w_in[slots].float()  # [S, 2L, D]
    w_out_SLD = level.w_out[slots].float()
    x_NTD = x_NTD.float()
    dy_NTD = dy_NTD.float()
    choose = int((state == ACTIVE).sum()) > level.top_k
    logits = F.linear(x_NTD, level.router.float())
    gate_NTS = level.gates(logits, state, choose)[..., slots]
    u, v = torch.einsum("ntd,skd->ntsk", x_NTD, w_in).split(level.d_low, dim=-1)  # [N, T, S, L]
    h = F.silu(u) * v
    o = torch.einsum("ntd,sld->ntsl", dy_NTD, w_out_SLD)
    d_logit_NTS = (o * h).sum(-1) * gate_NTS * (1 - gate_NTS)
    d_h = o * gate_NTS[..., None]
    sigma = torch.sigmoid(u)
    d_u = d_h * v * sigma * (1 + u * (1 - sigma))
    d_v = d_h * F.silu(u)
    d_router = torch.einsum("nts,ntd->nsd", d_logit_NTS, x_NTD)
    d_w_in = torch.einsum("ntsk,ntd->nskd", torch.cat([d_u, d_v], dim=-1), x_NTD)
    d_w_out = torch.einsum("ntsl,ntd->nsld", h * gate_NTS[..., None], dy_NTD)
    return d_router.flatten(1), d_w_in.flatten(1), d_w_out.flatten(1)


def _loss(model: nn.Module, texts_N: Sequence[Text], pad: int, chunk: int) -> Tensor:
    """Return the sum over the texts of the mean cross entropy of each completion, in nats."""
    device = next(model.parameters()).device
    completions = [completion for _, completion in texts_N]
    rows = PaddedRows.of([prompt for prompt, _ in texts_N], completions, pad, device)
    share_P = torch.tensor([1 / len(c) for c in completions for _ in c], device=device)
    out = model.model(input_ids=rows.ids_BT, attention_mask=rows.mask_BT, use_cache=False)
    hidden_PD = rows.at_positions(out.last_hidden_state)
    logp_P = token_logprobs(model.lm_head, hidden_PD, rows.token_P, chunk)
    return -(logp_P * share_P).sum()
