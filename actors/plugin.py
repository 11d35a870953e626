"""Entry point of vLLM's plugin group `vllm.general_plugins`: makes the sleep architectures known to
vLLM.

vLLM calls `register` in every process that it starts (driver, engine core, workers), possibly
several times.
"""

from __future__ import annotations


def register() -> None:
    """Registers Sleep{Qwen3,Qwen2,Llama}ForCausalLM, and their configs with transformers.
    Idempotent.
    """
    from vllm import ModelRegistry
    from vllm.platforms import current_platform

    from sleep_rl.model.families import FAMILIES

    known = set(ModelRegistry.get_supported_archs())
    for prefix in FAMILIES.values():
        name = f"Sleep{prefix}ForCausalLM"
        if name in known:
            continue
        # the class itself: a string costs a 10 s inspection process on a cold cache
        if current_platform.is_cpu():
            from actors import vllm_model

            ModelRegistry.register_model(name, getattr(vllm_model, name))
        else:  # a string: importing the model could touch CUDA before vLLM forks its workers
            ModelRegistry.register_model(name, f"actors.vllm_model:{name}")
