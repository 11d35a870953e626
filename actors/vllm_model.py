"""The expanded model in vLLM: the classes of each family with the memory of
`sleep_rl.model.memory`.

Parameter names of the base do not change (the class of the MLP is replaced, the MLP is not
wrapped), so weight loading, quantisation, LoRA and tensor parallelism of the base work unchanged.
Memory tensors are plain parameters: every tensor parallel rank holds all of them and computes the
same residual without communication.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from torch import Tensor, nn
from vllm.config import VllmConfig

from sleep_rl.model.families import FAMILIES
from sleep_rl.model.memory import attach_memory, first_layer, memory_levels


def _sleep_class(family: str, prefix: str) -> type[nn.Module]:
    """Return the class Sleep{prefix}ForCausalLM, a subclass of vLLM's class of the family."""
    module = importlib.import_module(f"vllm.model_executor.models.{family}")
    base = getattr(module, f"{prefix}ForCausalLM")

    class SleepModel(base):
        def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            config = vllm_config.model_config.hf_config
            # the other layers are placeholders of other pipeline stages
            first = max(self.model.start_layer, first_layer(config.memory_levels))
            for layer in self.model.layers[first : self.model.end_layer]:
                attach_memory(
                    layer.mlp,
                    config.hidden_size,
                    config.memory_levels,
                    fixed_shape=not vllm_config.model_config.enforce_eager,
                )

        def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
            """Load the weights of base and memory; return their names."""
            loaded = super().load_weights(weights)
            for level in memory_levels(self).values():
                # vLLM wrote into the tensor directly: update what the level derives from it
                level.set_state(level.state)
            return loaded

    SleepModel.__name__ = f"Sleep{prefix}ForCausalLM"
    SleepModel.__qualname__ = SleepModel.__name__
    SleepModel.__doc__ = f"{prefix} with memory levels in front of MLPs (paper.md section 2)."
    return SleepModel


for _family, _prefix in FAMILIES.items():
    # module attributes, so that vLLM and pickle find the classes by name
    globals()[f"Sleep{_prefix}ForCausalLM"] = _sleep_class(_family, _prefix)
