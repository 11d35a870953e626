"""Config and model classes of sleeping models: those of a family, with memory levels in front of
the MLPs of all layers, or of the upper ones.

Exported checkpoints contain this file and `sleep_rl.model.memory`; `sleep_rl.runs.export` rewrites
their imports from this package, so there must be no others.
"""

from __future__ import annotations

import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers import initialization as init

from sleep_rl.model.families import FAMILIES
from sleep_rl.model.memory import MemoryLevel, attach_memory, first_layer, swap_class

CLASSES: dict[str, tuple[type[PretrainedConfig], type[PreTrainedModel]]] = {}
"""Base model_type -> (config class, model class)."""


class _MemoryInit:
    """Initialise memory levels that a base checkpoint does not have.

    transformers calls `_init_weights` of the innermost PreTrainedModel, so this is mixed into the
    classes of the decoder and of the model with the head.
    """

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MemoryLevel):
            init.normal_(module.router, std=0.02)
            init.normal_(module.w_in, std=module.router.shape[1] ** -0.5)
            init.zeros_(module.w_out)
            init.zeros_(module.state)


def _make(base: str, prefix: str) -> tuple[type[PretrainedConfig], type[PreTrainedModel]]:
    """Return (config class, model class) of a base family with memory."""
    base_config = getattr(transformers, f"{prefix}Config")
    base_model = getattr(transformers, f"{prefix}ForCausalLM")

    class SleepConfig(base_config):
        """The base's config with the shape of the memory levels; None: no memory."""

        model_type = f"sleep_{base}"
        # an annotated field is a constructor argument in transformers 5
        memory_levels: list | None = None

    class SleepModel(_MemoryInit, base_model):
        """The base with memory levels in front of the MLP of each layer that has some."""

        config_class = SleepConfig

        def __init__(self, config: PretrainedConfig):
            super().__init__(config)
            swap_class(self.model, _MemoryInit)
            for layer in self.model.layers[first_layer(config.memory_levels) :]:
                attach_memory(layer.mlp, config.hidden_size, config.memory_levels)

    for cls, name in (
        (SleepConfig, f"Sleep{prefix}Config"),
        (SleepModel, f"Sleep{prefix}ForCausalLM"),
    ):
        cls.__name__ = cls.__qualname__ = name
    return SleepConfig, SleepModel


for _base, _prefix in FAMILIES.items():
    CLASSES[_base] = _make(_base, _prefix)
    for _cls in CLASSES[_base]:
        globals()[_cls.__name__] = _cls  # importable by name, as pickling and transformers expect
