"""How the gradients of many texts relate (paper.md section 4, step 2), without a gradient per text
of the whole model.

For loss l_i of text i the Gram matrix holds <grad l_i, grad l_j> over the low-rank parameters: the
unlocked experts of every memory level and their router rows. Texts go through in micro batches,
forward and backward once; each level then makes its own part from what went in and from the
gradient of what came out. Only the last text's gradient is kept, to be multiplied with the others';
for the whole matrix, all of them are, in host memory.

Shapes: N texts, T tokens, P loss positions, D model width, S slots, L = d_low.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learners.seeding import Rows
from sleep_rl.contracts.records import TEACHER, Ids
from sleep_rl.model.memory import ACTIVE, BASE_SLOT, LOCKED, MemoryLevel, memory_levels, view_of
from sleep_rl.objectives import token_logprobs

Text = tuple[Ids, Ids]  # prompt and completion


def gram(
    model: nn.Module,
    texts_N: Sequence[Text],
    pad: int,
    *,
    whole: bool = True,
    size: int = 64,
    chunk: int = 1024,
) -> Tensor:
    """[N, N] inner products of the gradients of each text's loss: cross entropy of the completion,
    in nats per token, in the stored (TEACHER) state. Without `whole` only the diagonal and the
    products with the last text are made, the rest is
    0. `size` texts go through together, with logits of `chunk` positions at once. Raises ValueError
    when no expert is unlocked.
    """
    levels = list(memory_levels(model).values())
    if not any((level.state[BASE_SLOT + 1 :] != LOCKED).any() for level in levels):
        raise ValueError(
            "no expert is unlocked, so there is no low-rank parameter to take gradients of"
        )
    last, count = len(texts_N) - 1, len(texts_N)
    out_NN = torch.zeros(count, count, dtype=torch.float64)
    # places, and their gradients level by level, part by part
    held: list[tuple[list[int], list[Tensor]]] = []
    for start in range(0, count, size):  # the last text first: the others are multiplied with it
        places = [(last - n) for n in range(start, min(start + size, count))]
        parts = _gradients(model, [texts_N[n] for n in places], pad, chunk)
        for others, theirs in [*held, (places, parts)]:
            for mine, other in zip(parts, theirs, strict=True):
                block = (mine @ other.to(mine).T).double().cpu()
                for i, n in enumerate(places):
                    for j, m in enumerate(others):
                        if whole or n == m or last in (n, m):
                            out_NN[n, m] += block[i, j]
                            if others is not places:
                                out_NN[m, n] += block[i, j]
        if whole:
            held.append((places, [part.cpu() for part in parts]))
        elif not held:
            held.append(([last], [part[:1] for part in parts]))
    return out_NN


def _gradients(model: nn.Module, texts_N: Sequence[Text], pad: int, chunk: int) -> list[Tensor]:
    """[N, elements] per level and part, one row a text."""
    parts: list[Tensor] = []

    def watch(level: MemoryLevel, inputs: tuple[Tensor], out_NTD: Tensor) -> None:
        x_NTD = inputs[0].detach()
        if out_NTD.requires_grad:
            out_NTD.register_hook(
                lambda grad_NTD: parts.extend(level_gradients(level, x_NTD, grad_NTD))
            )

    used = [
        level
        for level in memory_levels(model).values()
        if (level.state[BASE_SLOT + 1 :] != LOCKED).any()
    ]
    handles = [level.register_forward_hook(watch) for level in used]
    handles.append(
        model.get_input_embeddings().register_forward_hook(lambda _, __, out: out.requires_grad_())
    )
    try:
        with torch.enable_grad(), view_of(model, TEACHER):
            _loss(model, texts_N, pad, chunk).backward()
    finally:
        for handle in handles:
            handle.remove()
    return parts


@torch.no_grad()
def level_gradients(
    level: MemoryLevel, x_NTD: Tensor, grad_NTD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """([N, S*D], [N, S*2L*D], [N, S*L*D]) gradients of router, w_in and w_out of the unlocked
    experts, one row a text, from the level's input and the gradient of its output; padding has
    none, as no loss depends on it.
    """
    state = level.states()
    slots = [s for s, value in enumerate(state.tolist()) if value != LOCKED and s != BASE_SLOT]
    _router_SD, w_in, w_out_SLD = (
        getattr(level, part)[slots] for part in ("router", "w_in", "w_out")
    )
    x, grad = x_NTD.float(), grad_NTD.float()
    choose = int((state == ACTIVE).sum()) > level.top_k
    gate = level.gates(F.linear(x, level.router.float()), state, choose)[..., slots]  # [N, T, S]
    a = torch.einsum("ntd,skd->ntsk", x, w_in.float())
    first, second = a.split(level.d_low, dim=-1)
    hidden = F.silu(first) * second  # [N, T, S, L]
    out = torch.einsum("ntd,sld->ntsl", grad, w_out_SLD.float())  # gradient of gate * hidden
    by_gate = (out * hidden).sum(-1) * gate * (1 - gate)
    by_hidden = out * gate[..., None]
    sigma = torch.sigmoid(first)
    by_a = torch.cat(
        [by_hidden * second * sigma * (1 + first * (1 - sigma)), by_hidden * F.silu(first)], dim=-1
    )
    parts = (
        torch.einsum("nts,ntd->nsd", by_gate, x),
        torch.einsum("ntsk,ntd->nskd", by_a, x),
        torch.einsum("ntsl,ntd->nsld", hidden * gate[..., None], grad),
    )
    return tuple(part.flatten(1) for part in parts)


def _loss(model: nn.Module, texts_N: Sequence[Text], pad: int, chunk: int) -> Tensor:
    """Sum over the texts of the mean cross entropy of each completion, nats per token."""
    device = next(model.parameters()).device
    prompts, completions = zip(*texts_N)
    rows = Rows.of(list(prompts), list(completions), pad, device)
    token_P = torch.tensor([t for c in completions for t in c], device=device)
    share_P = torch.tensor([1 / len(c) for c in completions for _ in c], device=device)
    hidden_NTD = model.model(
        input_ids=rows.ids_BT, attention_mask=rows.mask_BT, use_cache=False
    ).last_hidden_state
    logp_P = token_logprobs(model.lm_head, hidden_NTD.flatten(0, 1)[rows.flat_P], token_P, chunk)
    return -(logp_P * share_P).sum()
