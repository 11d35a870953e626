"""Run layers of a Hugging Face decoder, from one layer to another, also with gradient
checkpointing.

Qwen3, Qwen2 and Llama call their layers alike.

Shape suffixes: B sequences, T tokens of the padded batch, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

Context = Callable[[], AbstractContextManager]


def run_layers(
    decoder: nn.Module,
    hidden_BTD: Tensor,
    mask_BT: Tensor,
    *,
    first: int = 0,
    last: int | None = None,
    recomputed_in: Context | None = None,
    past: Cache | None = None,
) -> Tensor:
    """Return the output of layers `first` to `last` - 1 (None: to the end) on `hidden_BTD`.

    decoder: the `model` of a causal language model; its embedding and its final norm are left to
        the caller.
    mask_BT: 0 on padding.
    past: keys and values of tokens before `hidden_BTD`, equally many in each sequence and without
        padding; those of `hidden_BTD` are added. It has full attention in every layer.
    recomputed_in: gradient checkpointing. Only the layers' inputs are kept, and each layer is
        computed again in the backward pass, inside this context. None: everything is kept.
    """
    position_BT = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device)[None]
    if past is not None:
        seen = past.get_seq_length()
        position_BT = position_BT + seen
        mask_BT = torch.cat([mask_BT.new_ones(len(mask_BT), seen), mask_BT], dim=1)
    masks = _attention_masks(decoder, hidden_BTD, mask_BT, position_BT, past)
    position_embeddings = decoder.rotary_emb(hidden_BTD, position_BT)
    kinds = getattr(decoder.config, "layer_types", None) or ["full_attention"] * len(decoder.layers)
    for number in range(first, len(decoder.layers) if last is None else last):
        layer = partial(
            decoder.layers[number],
            attention_mask=masks[kinds[number]],
            position_embeddings=position_embeddings,
            position_ids=position_BT,
            past_key_values=past,
        )
        if recomputed_in is None or not torch.is_grad_enabled():
            hidden_BTD = layer(hidden_BTD)
        else:
            hidden_BTD = _checkpointed(layer, hidden_BTD, recomputed_in)
    return hidden_BTD


def _attention_masks(
    decoder: nn.Module,
    hidden_BTD: Tensor,
    mask_BT: Tensor,
    position_BT: Tensor,
    past: Cache | None,
) -> dict[str, Tensor | None]:
    """Return the attention mask of each kind of layer."""
    arguments = {
        "config": decoder.config,
        "inputs_embeds": hidden_BTD,
        "attention_mask": mask_BT,
        "past_key_values": past,
        "position_ids": position_BT,
    }
    masks = {"full_attention": create_causal_mask(**arguments)}
    if getattr(decoder, "has_sliding_layers", False):
        masks["sliding_attention"] = create_sliding_window_causal_mask(**arguments)
    return masks


def _checkpointed(
    layer: Callable[[Tensor], Tensor], hidden_BTD: Tensor, context: Context
) -> Tensor:
    # determinism_check="none": ZeRO-3 gathers the layer again for the recomputation, with the same
    # values in another storage. There is no dropout, so no random state to restore.
    return checkpoint(
        layer,
        hidden_BTD,
        use_reentrant=False,
        preserve_rng_state=False,
        determinism_check="none",
        context_fn=lambda: (nullcontext(), context()),
    )
