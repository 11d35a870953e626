"""Process environment of engines. Imports nothing heavy: it is read before torch and vLLM are
imported.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

ENGINE_ENVIRONMENT = {
    # engine in the worker's process: starts 3x faster, tensors go in directly
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""Needed by every engine; `actors.engine` sets what is unset, so workers also run without a
prepared environment.
"""


def cpu_environment(threads: int) -> dict[str, str]:
    """Environment of a process with an engine on CPU. It must be set before the process starts:
    OpenMP reads it once.

    One thread is the usual value: two spinning threads on shared cores cost a factor of 3 to 70.
    """
    return ENGINE_ENVIRONMENT | {
        "OMP_NUM_THREADS": str(threads),
        # otherwise every engine of a node pins itself to the same first cores
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # saves 5 to 20 s of compiling sampler helpers; right with enforce_eager only
        "TORCHDYNAMO_DISABLE": "1",
    }


def built_for_cpu() -> bool:
    """Whether the installed vLLM is one for CPUs: vLLM's own rule, without importing vLLM. False
    where there is none.
    """
    for package, suffix in (("vllm", ""), ("vllm-cpu", "+cpu")):
        try:
            return "cpu" in version(package) + suffix
        except PackageNotFoundError:
            continue
    return False
