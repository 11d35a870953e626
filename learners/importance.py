"""How the gradients of many texts relate (paper.md section 4, step 2), without a gradient per text of the whole model.

For loss l_i of text i the Gram matrix holds <grad l_i, grad l_j> over the low-rank parameters: the unlocked experts of
every memory level and their router rows. One forward and one backward pass over all texts; each level then makes its own
part from what went in and from the gradient of what came out, and forgets it.

Shapes: N texts, T tokens, D model width, S slots, L = d_low.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sleep_rl.contracts import TEACHER
from sleep_rl.memory import BASE_SLOT, LOCKED, MemoryLevel, memory_levels, view_of
from sleep_rl.text import Ids


def gram(model: nn.Module, texts_N: Items[tuple[Ids, Ids]], pad: int) -> Tensor:
    """[N, N] inner products of the gradients of each text's loss: cross entropy of (prompt, completion)'s completion,
    in nats per token, in the stored (TEACHER) state. Raises ValueError when no expert is unlocked."""
    levels = list(memory_levels(model).values())
    if not any((level.state[BASE_SLOT + 1 :] != LOCKED).any() for level in levels):
        raise ValueError("no expert is unlocked, so there is no low-rank parameter to take gradients of")
    device = next(model.parameters()).device
    out_NN = torch.zeros(len(texts_N), len(texts_N), dtype=torch.float64, device=device)

    def watch(level: MemoryLevel, inputs: tuple[Tensor], out_NTD: Tensor) -> None:
        x_NTD = inputs[0].detach()

        def add(grad_NTD: Tensor) -> None:
            for part in level_gradients(level, x_NTD, grad_NTD):
                out_NN.add_((part @ part.T).double())

        if out_NTD.requires_grad:
            out_NTD.register_hook(add)

    used = [level for level in levels if (level.state != LOCKED).any()]
    handles = [level.register_forward_hook(watch) for level in used]
    handles.append(model.get_input_embeddings().register_forward_hook(lambda _, __, out: out.requires_grad_()))
    try:
        with torch.enable_grad(), view_of(model, TEACHER):
            _losses(model, texts_N, pad, device).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
    return out_NN


@torch.no_grad()
def level_gradients(level: MemoryLevel, x_NTD: Tensor, grad_NTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """([N, S*D], [N, S*2L*D], [N, S*L*D]) gradients of router, w_in and w_out of the unlocked experts, one row a text, from
    the level's input and the gradient of its output; padding has none, as no loss depends on it."""
    state = level.states()
    slots = [s for s, value in enumerate(state.tolist()) if value != LOCKED and s != BASE_SLOT]
    router_SD, w_in, w_out_SLD = (getattr(level, part)[slots] for part in ("router", "w_in", "w_out"))
    x, grad = x_NTD.float(), grad_NTD.float()
    choose = int((state == 1).sum()) > level.top_k
    gate = level.gates(F.linear(x, level.router.float()), state, choose)[..., slots]  # [N, T, S]
    a = torch.einsum("ntd,skd->ntsk", x, w_in.float())
    first, second = a.split(level.d_low, dim=-1)
    hidden = F.silu(first) * second  # [N, T, S, L]
    out = torch.einsum("ntd,sld->ntsl", grad, w_out_SLD.float())  # gradient of gate * hidden
    by_gate = (out * hidden).sum(-1) * gate * (1 - gate)
    by_hidden = out * gate[..., None]
    sigma = torch.sigmoid(first)
    by_a = torch.cat([by_hidden * second * sigma * (1 + first * (1 - sigma)), by_hidden * F.silu(first)], dim=-1)
    parts = (torch.einsum("nts,ntd->nsd", by_gate, x), torch.einsum("ntsk,ntd->nskd", by_a, x),
             torch.einsum("ntsl,ntd->nsld", hidden * gate[..., None], grad))
    return tuple(part.flatten(1) for part in parts)


def _losses(model: nn.Module, texts_N: Items[tuple[Ids, Ids]], pad: int, device) -> Tensor:
    """[N] mean cross entropy of each completion, nats per token."""
    width = max(len(prompt) + len(completion) for prompt, completion in texts_N)
    ids_NT = torch.full((len(texts_N), width), pad, dtype=torch.long)
    mask_NT, weight_NT = torch.zeros_like(ids_NT), torch.zeros(len(texts_N), width)
    for n, (prompt, completion) in enumerate(texts_N):
        end = len(prompt) + len(completion)
        ids_NT[n, :end] = torch.tensor(prompt + completion)
        mask_NT[n, :end] = 1
        weight_NT[n, len(prompt) : end] = 1 / len(completion)
    ids_NT, mask_NT, weight_NT = ids_NT.to(device), mask_NT.to(device), weight_NT.to(device)
    logits_NTV = model(input_ids=ids_NT, attention_mask=mask_NT, use_cache=False).logits[:, :-1].float()
    nats_NT = F.cross_entropy(logits_NTV.transpose(1, 2), ids_NT[:, 1:], reduction="none")
    return (nats_NT * weight_NT[:, 1:]).sum(1)
