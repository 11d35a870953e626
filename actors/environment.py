"""Environment of a process with a vLLM engine. Imports nothing heavy: it is read before torch and
vLLM are imported.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

ENGINE_ENVIRONMENT = {
    # engine in the worker's process: starts 3x faster, tensors are passed directly
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""What every engine needs; `actors.engine` sets what is unset, so workers also run without a
prepared environment.
"""


def cpu_environment(threads: int) -> dict[str, str]:
    """Return the environment of a process with an engine on CPU, for `threads` OpenMP threads.

    It must be set before the process starts: OpenMP reads it once. One thread is the usual value:
    two spinning threads on shared cores cost a factor of 3 to 70.
    """
    return ENGINE_ENVIRONMENT | {
        "OMP_NUM_THREADS": str(threads),
        # otherwise every engine of a node pins itself to the same first cores
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # saves 5 to 20 s of compiling sampler functions; right with enforce_eager only
        "TORCHDYNAMO_DISABLE": "1",
    }


def built_for_cpu() -> bool:
    """Return whether the installed vLLM is built for CPUs; False where none is installed.

    It is vLLM's own rule, without importing vLLM.
    """
    for package, suffix in (("vllm", ""), ("vllm-cpu", "+cpu")):
        try:
            return "cpu" in version(package) + suffix
        except PackageNotFoundError:
            continue
    return False
