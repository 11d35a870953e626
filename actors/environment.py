"""Environment variables of a process with a vLLM engine. Imports neither torch nor vLLM, because
they must be set before.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

ENGINE_ENVIRONMENT = {
    # run the engine in the worker's process: 3x faster start, tensors are passed directly
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""For every engine. `actors.engine` sets those that are unset, so that workers also run without a
prepared environment.
"""


def cpu_environment(threads: int) -> dict[str, str]:
    """Return the variables of a process with an engine on CPU and `threads` OpenMP threads.

    They must be set before the process starts, because OpenMP reads them once. One thread is the
    usual value: with two spinning threads on shared cores an engine is 3 to 70 times slower.
    """
    return ENGINE_ENVIRONMENT | {
        "OMP_NUM_THREADS": str(threads),
        # otherwise all engines of a node pin themselves to the same first cores
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # saves 5 to 20 s of compiling sampler functions; requires enforce_eager
        "TORCHDYNAMO_DISABLE": "1",
    }


def built_for_cpu() -> bool:
    """Return whether the installed vLLM is built for CPUs; False if none is installed.

    The rule is vLLM's own, applied without importing vLLM.
    """
    for package, suffix in (("vllm", ""), ("vllm-cpu", "+cpu")):
        try:
            return "cpu" in version(package) + suffix
        except PackageNotFoundError:
            continue
    return False
