"""Model families that can have a memory, and how their parameters differ.

A new family is one row of FAMILIES, and one of each other table in which it differs from Llama.
"""

FAMILIES = {"qwen3": "Qwen3", "qwen2": "Qwen2", "llama": "Llama"}
"""Base model_type -> class prefix, the same in transformers and in vLLM."""

HEAD_DIM = {"qwen3": 128}
"""model_type -> default of head_dim, if it is not hidden_size / num_attention_heads."""

HEAD_NORMS = {"qwen3"}
"""Families with an RMSNorm over head_dim for queries and one for keys, in every layer."""

QKV_BIASES = {"qwen2"}
"""Families with a bias in the projections of queries, keys and values."""
