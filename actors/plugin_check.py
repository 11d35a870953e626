"""Check whether vLLM loads the plugin: `python -m actors.plugin_check` prints the result as JSON on
its last line. Imports vLLM.
"""

from __future__ import annotations

import json


def check_plugin() -> dict[str, object]:
    """Load vLLM's plugins; return vLLM's "version" and "platform", and the names of the sleep
    architectures: all of them under "found", the unregistered ones under "missing".
    """
    import vllm
    from vllm import ModelRegistry
    from vllm.platforms import current_platform
    from vllm.plugins import load_general_plugins

    from actors.plugin import architectures

    load_general_plugins()
    names = sorted(architectures())
    registered = set(ModelRegistry.get_supported_archs())
    return {
        "version": vllm.__version__,
        "platform": current_platform.device_type,
        "missing": [name for name in names if name not in registered],
        "found": names,
    }


if __name__ == "__main__":
    print(json.dumps(check_plugin()))
