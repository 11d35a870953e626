"""Function-preserving growth: a larger model that computes the same as a smaller one (paper.md
section 1: Knowledge Seeding goes from small to large).

Exact up to rounding for the families Qwen3, Qwen2 and Llama:

width: every hidden unit and every head is copied m times. RMSNorm has the same mean square, so the
copies stay equal. Each of m equal inputs gets 1/m of the input weight, plus noise that sums to
zero, so that gradients of the copies differ.

intermediate: more MLP units, whose output weights are 0.

layers: copies of evenly chosen layers, each after its original, whose two output projections are 0.

Shape suffixes: O outputs, I inputs of a linear layer.
"""

from __future__ import annotations

import copy
import os
import re

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sleep_rl.contracts.errors import InputError, one_line
from sleep_rl.model import checkpoints, memory_folder

NOISE = 0.1  # relative to the standard deviation of the weights that it is added to


def grow(
    path: str, out: str, *, layers: int = 0, width: int = 1, intermediate: int = 0, seed: int = 0
) -> str:
    """Grow the checkpoint `path`, write the result to the new folder `out`, and return `out`.

    layers: number of layers to add.
    width: factor of hidden units and heads.
    intermediate: MLP units in total; 0: unchanged.
    seed: of the noise and of the new MLP units.

    Raises InputError if `path` cannot be read or the sizes are not larger, RunError if `out` cannot
    be written.
    """
    config = checkpoints.read_config(path)
    if config.model_type.startswith("sleep_") or memory_folder.is_memory_folder(path):
        raise InputError(f"grow: a checkpoint without memory levels, got {path}; grow its base")
    if os.path.exists(out):
        raise InputError(f"grow: a new folder, {out} exists")
    intermediate = intermediate or config.intermediate_size
    if (
        layers < 0
        or width < 1
        or intermediate < config.intermediate_size
        or (layers == 0 and width == 1 and intermediate == config.intermediate_size)
    ):
        raise InputError(
            "grow: --layers >= 0, --width >= 1, --intermediate >= "
            f"{config.intermediate_size}, and at least one of them larger, got {layers}, {width}, "
            f"{intermediate}"
        )
    tokenizer = checkpoints.load_tokenizer(path, config.vocab_size)
    try:
        small = AutoModelForCausalLM.from_pretrained(
            path, dtype="auto", use_safetensors=True, trust_remote_code=False
        )
    # Boundary: transformers raises many types for an invalid checkpoint.
    except Exception as error:
        raise InputError(f"model {path}: weights cannot be read ({one_line(error)})") from error
    large = AutoModelForCausalLM.from_config(
        _config(config, layers, width, intermediate), dtype=small.dtype
    )
    generator = torch.Generator().manual_seed(seed)
    large.load_state_dict(_weights(small, large, width, generator))
    checkpoints.save(large, tokenizer, out)
    return out


def _config(small: AutoConfig, layers: int, width: int, intermediate: int):
    large = copy.deepcopy(small)
    head = getattr(small, "head_dim", None) or small.hidden_size // small.num_attention_heads
    large.hidden_size *= width
    large.num_attention_heads *= width
    large.num_key_value_heads *= width
    large.intermediate_size = intermediate
    large.num_hidden_layers += layers
    if hasattr(small, "head_dim"):
        large.head_dim = head
    if getattr(small, "layer_types", None):
        large.layer_types = [small.layer_types[n] for n in sources(small.num_hidden_layers, layers)]
    return large


def sources(layers: int, more: int) -> list[int]:
    """Return the number of the original layer for each layer of the larger model, e.g. 0 0 1 1."""
    counts = [1 + (more * (n + 1)) // layers - (more * n) // layers for n in range(layers)]
    return [n for n, count in enumerate(counts) for _ in range(count)]


def _weights(
    small: PreTrainedModel, large: PreTrainedModel, width: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return every weight of the larger model by name."""
    old = small.state_dict()
    new = large.state_dict()
    origin = sources(
        small.config.num_hidden_layers,
        large.config.num_hidden_layers - small.config.num_hidden_layers,
    )
    tied = small.config.tie_word_embeddings
    for name, target in new.items():
        layer = re.search(r"\.layers\.(\d+)\.", name)
        number = int(layer.group(1)) if layer else -1
        source = old[
            re.sub(r"\.layers\.\d+\.", f".layers.{origin[number]}.", name) if layer else name
        ]
        part = name.split(".")[-2]  # q_proj, down_proj, embed_tokens, norm, ...
        is_copy = number > 0 and origin[number] == origin[number - 1]
        if is_copy and part in ("o_proj", "down_proj"):
            new[name] = torch.zeros_like(target)
            continue
        value = source
        # a tied head reads m copies, but dividing it would change the embedding: divide the norm
        if part == "norm" and tied:
            value = source / width
        if part == "embed_tokens" or (part == "lm_head" and tied):
            value = torch.cat([source] * width, dim=1)
        elif part in ("q_norm", "k_norm"):
            pass  # per head
        elif value.dim() == 1 and part not in ("gate_proj", "up_proj"):  # norms; biases of q, k, v
            value = torch.cat([value] * width)
        elif part in ("gate_proj", "up_proj"):
            value = _more_rows(_split_inputs(source, width, generator), target.shape[0], generator)
        elif part == "down_proj":
            extra = target.shape[1] - source.shape[1]
            value = torch.cat(
                [torch.cat([source, source.new_zeros(source.shape[0], extra)], dim=1)] * width
            )
        elif part == "lm_head":
            value = _split_inputs(source, width, generator)
        else:  # q, k, v, o: as many rows as there are copies of heads, or of hidden units
            value = torch.cat([_split_inputs(source, width, generator) for _ in range(width)])
        new[name] = value.to(target.dtype)
    return new


def _split_inputs(weight_OI: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Return weights [O, width * I] for `width` equal copies of the inputs; those of the copies sum
    to `weight_OI`.
    """
    if width == 1:
        return weight_OI
    noise = torch.randn(width, *weight_OI.shape, generator=generator) * (
        NOISE * weight_OI.float().std() / width
    )
    noise -= noise.mean(0, keepdim=True)
    return torch.cat([(weight_OI.float() / width + n).to(weight_OI.dtype) for n in noise], dim=1)


def _more_rows(weight: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """Append random rows of the same standard deviation to `weight`, up to `rows` rows."""
    extra = (
        torch.randn(rows - weight.shape[0], weight.shape[1], generator=generator)
        * weight.float().std()
    )
    return torch.cat([weight, extra.to(weight.dtype)])
