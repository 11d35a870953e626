"""Entry point of vLLM's plugin group `vllm.general_plugins`: registers the sleep architectures.

vLLM calls `register` in every process that it starts (driver, engine core, workers), possibly
several times.
"""

from __future__ import annotations


def architectures() -> list[str]:
    """Return the names of the sleep model classes: Sleep{Qwen3,Qwen2,Llama}ForCausalLM."""
    from sleep_rl.model.families import FAMILIES

    return [f"Sleep{prefix}ForCausalLM" for prefix in FAMILIES.values()]


def register() -> None:
    """Register the sleep architectures with vLLM and their configs with transformers.
    Idempotent.
    """
    from vllm import ModelRegistry
    from vllm.platforms import current_platform

    # Importing it registers the configs with transformers.
    import sleep_rl.model.checkpoints  # noqa: F401

    known = set(ModelRegistry.get_supported_archs())
    for name in architectures():
        if name in known:
            continue
        if current_platform.is_cpu():
            # the class itself: for a string vLLM starts an inspection process, 10 s if not cached
            from actors import vllm_model

            ModelRegistry.register_model(name, getattr(vllm_model, name))
        else:
            # a string: importing the model could touch CUDA before vLLM forks its workers
            ModelRegistry.register_model(name, f"actors.vllm_model:{name}")
