"""Tiny random models of the three families, with tokenizer and memory."""

from __future__ import annotations

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from sleep_rl.model import checkpoints
from sleep_rl.model.memory import ACTIVE, FRESH, LOCKED, memory_levels

ENGINE = {
    "max_model_len": 128,
    "max_num_seqs": 64,
    "kv_cache_memory_bytes": 32 << 20,
    "enforce_eager": True,
    "max_num_batched_tokens": 256,  # so that a few prompts exceed one step
    # with vLLM's 128 on CPU such short prompts would not use the prefix cache
    "block_size": 32,
}
EOS = 1
PAD = 0
VOCABULARY = 300  # larger than the tokenizer's: models may have unused rows
LEVELS = {
    "dense": [{"experts": 4, "d_low": 16, "top_k": 4}],
    "sparse": [{"experts": 4, "d_low": 16, "top_k": 2}],
}
LEVELS |= {
    "locked": LEVELS["dense"],
    "two levels": 2 * LEVELS["dense"],
    "sparser": [{"experts": 4, "d_low": 16, "top_k": 1}],
    "upper": [{"experts": 4, "d_low": 16, "top_k": 4, "first_layer": 1}],
}
LEVELS["upper locked"] = LEVELS["upper"]
"""Memory of the test models: the top-k selects all three ACTIVE experts in `dense`, two in
`sparse`, one in `sparser`; no expert is unlocked in `locked`, `upper locked` and `two levels`.
`upper` is `dense` in the second layer alone.
"""
STATES = [LOCKED, ACTIVE, ACTIVE, ACTIVE, FRESH]


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of bytes, and the words yes and no with and without a leading space."""
    words = [
        "<pad>",
        "<eos>",
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        "es",
        "yes",
        "no",
        "Ġyes",
        "Ġno",
    ]
    merges = [("e", "s"), ("y", "es"), ("n", "o"), ("Ġ", "yes"), ("Ġ", "no")]
    backend = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>"
    )


def make_base(family: str, path: str, seed: int = 0, **fields) -> str:
    """Write a random base checkpoint (2 layers, hidden 64, head_dim 32; `fields` change it) with
    its tokenizer.
    """
    prefix = checkpoints.FAMILIES[family]
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "tie_word_embeddings": family != "llama",
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "initializer_range": 0.1,
        **fields,
    }
    torch.manual_seed(seed)
    model = getattr(transformers, f"{prefix}ForCausalLM")(
        getattr(transformers, f"{prefix}Config")(**shape)
    )
    checkpoints.save(model, make_tokenizer(), path)
    return path


def fill_memory(model: torch.nn.Module, seed: int = 0) -> None:
    """Set three ACTIVE experts and a FRESH one to random weights that clearly change the
    outputs.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for level in memory_levels(model).values():
            level.router.normal_(0, 0.3, generator=generator)
            level.w_out.normal_(0, 0.3, generator=generator)
            level.set_state(STATES)
