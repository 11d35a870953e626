"""The expanded model in vLLM: each family's own class plus the memory of `sleep_rl.model.memory`.

Base parameter names stay as they are (the MLP's class is swapped, not wrapped), so weight loading,
quantisation, LoRA and tensor parallelism of the base work unchanged. Memory tensors are plain
parameters: every tensor parallel rank holds all of them and computes the same residual, which needs
no communication.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from torch import Tensor, nn
from vllm.config import VllmConfig

from sleep_rl.model.families import FAMILIES
from sleep_rl.model.memory import attach_memory, memory_levels


def _sleep_class(family: str, prefix: str) -> type[nn.Module]:
    """Return the class Sleep{prefix}ForCausalLM over vLLM's own class of a family."""
    module = importlib.import_module(f"vllm.model_executor.models.{family}")
    base = getattr(module, f"{prefix}ForCausalLM")

    class SleepModel(base):
        def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            config = vllm_config.model_config.hf_config
            # Other layers belong to other pipeline stages and are placeholders here.
            for layer in self.model.layers[self.model.start_layer : self.model.end_layer]:
                attach_memory(layer.mlp, config.hidden_size, config.memory_levels)
            for level in memory_levels(self).values():
                level.fixed_shape = not vllm_config.model_config.enforce_eager

        def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
            """Load the base's and the memory's weights; return the names that were loaded."""
            loaded = super().load_weights(weights)
            for level in memory_levels(self).values():
                # vLLM's loader wrote into the tensor itself; the level has to know of it
                level.set_state(level.state)
            return loaded

    SleepModel.__name__ = f"Sleep{prefix}ForCausalLM"
    SleepModel.__qualname__ = SleepModel.__name__
    SleepModel.__doc__ = f"{prefix} with memory levels in front of every MLP (paper.md section 2)."
    return SleepModel


for _family, _prefix in FAMILIES.items():
    # as module attributes, where vLLM and pickle find them by name
    globals()[f"Sleep{_prefix}ForCausalLM"] = _sleep_class(_family, _prefix)
