"""The config.json of a base model of a few hundred parameters, and overrides that fit it."""

from __future__ import annotations

SMALL = {
    "model_type": "qwen3",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "vocab_size": 10,
    "tie_word_embeddings": True,
    "max_position_embeddings": 64,
}
SMALL_ARGS = (
    "model.d_low=2",
    "model.experts=3",
    "model.top_k=3",
    "rollouts.engine.max_model_len=64",
    "rollouts.engine.kv_cache_memory_bytes=6400",
)
