"""Whether vLLM finds this package: `python -m actors.plugin_check` prints it as its last line, as
JSON. It imports vLLM.
"""

from __future__ import annotations

import json


def found() -> dict[str, object]:
    """vLLM's version and platform, and which of our architectures its own loading of plugins makes
    known.
    """
    import vllm
    from vllm import ModelRegistry
    from vllm.platforms import current_platform
    from vllm.plugins import load_general_plugins

    from sleep_rl.model.families import FAMILIES

    load_general_plugins()
    wanted = {f"Sleep{prefix}ForCausalLM" for prefix in FAMILIES.values()}
    return {
        "version": vllm.__version__,
        "platform": current_platform.device_type,
        "missing": sorted(wanted - set(ModelRegistry.get_supported_archs())),
        "found": sorted(wanted),
    }


if __name__ == "__main__":
    print(json.dumps(found()))
