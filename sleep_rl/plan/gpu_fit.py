"""Memory per GPU: what the workers of each GPU need, and whether it fits.

The sums are as approximate as the sizes of `plan.sizes` that they add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import InputError
from sleep_rl.plan.types import Plan

GB = 1e9
GPU_SIZES = (16, 24, 40, 48, 80, 141, 180)  # GB of GPUs on the market
VLLM_SHARE = 0.92  # of a GPU's memory: vLLM's default for gpu_memory_utilization


@dataclass(frozen=True)
class GpuLoad:
    """Memory that the workers on one GPU need. Sizes are in bytes.

    `token_bytes` > 0: a vLLM engine may use `share` of the GPU, and its KV cache takes what
    `fixed_bytes` leave of that; the cache must hold at least `max_tokens` tokens.
    """

    roles: str  # e.g. "rollout + learner"
    fixed_bytes: float  # everything but such a cache
    share: float = 1.0
    token_bytes: float = 0.0  # of one token in the KV cache
    max_tokens: int = 0  # of the longest sequence

    @property
    def min_gpu_bytes(self) -> float:
        """Memory of the smallest GPU that suffices, in bytes."""
        return (self.fixed_bytes + self.max_tokens * self.token_bytes) / self.share

    def cache_bytes(self, gpu_bytes: float) -> float:
        """Return the size of the KV cache on a GPU with `gpu_bytes` of memory; 0 without one."""
        return gpu_bytes * self.share - self.fixed_bytes if self.token_bytes else 0.0


def gpu_loads(plan: Plan) -> tuple[GpuLoad, ...]:
    """Return one GpuLoad per kind of GPU that the run uses; none for a run on CPUs.

    Each role whose workers have whole GPUs is one kind. All roles with a share of a GPU form
    another one, on the assumption that their workers are packed onto as few GPUs as possible.
    Semantic reward workers are not included, since the size of their model is unknown.
    """
    config = plan.config
    out = []
    shared = []
    sizes = {"rollout": plan.rollout, "learner": plan.learner, "critic": plan.critic}
    for actor in plan.actors:
        size = sizes.get(actor.role)
        if size is None or actor.gpus == 0:
            continue
        if actor.gpus < 1:
            shared.append((actor, size.total))
        elif size.cache is None:
            max_tokens = config.rollouts.engine.get("max_model_len") or plan.base.positions or 1
            out.append(
                GpuLoad(
                    actor.role,
                    size.total / actor.gpus,
                    gpu_memory_utilization(config.rollouts.engine),
                    plan.token_bytes / actor.gpus,
                    max_tokens,
                )
            )
        else:
            out.append(GpuLoad(actor.role, size.total / actor.gpus))
    if shared:
        gpus = math.ceil(sum(a.count * a.gpus for a, _ in shared) - 1e-6)
        out.append(
            GpuLoad(
                " + ".join(a.role for a, _ in shared),
                sum(a.count * total for a, total in shared) / gpus,
            )
        )
    return tuple(out)


def gpu_memory_utilization(engine: dict) -> float:
    """Return the share of a GPU that vLLM uses, and that must be free when it starts."""
    return engine.get("gpu_memory_utilization") or VLLM_SHARE


def check_shares(config: Config) -> None:
    """Check the engines on shared GPUs.

    Raises InputError where vLLM would not start (less than its gpu_memory_utilization is free), or
    would leave no memory to the other workers (its KV cache has no fixed size).
    """
    for section, gpus, engine in (
        ("rollouts", config.rollouts.gpus, config.rollout_engine),
        ("critics", config.critics.gpus if config.dream.rounds else 0, config.critic_engine),
    ):
        if not 0 < gpus < 1:
            continue
        if gpu_memory_utilization(engine) > gpus:
            raise InputError(
                f"{section}.engine.gpu_memory_utilization: at most {section}.gpus = {gpus:g} on a "
                "shared GPU, since vLLM starts only if that share is free, got "
                f"{gpu_memory_utilization(engine):g}"
            )
        if not engine.get("kv_cache_memory_bytes"):
            raise InputError(
                f"{section}.engine.kv_cache_memory_bytes: a number of bytes on a shared GPU "
                f"({section}.gpus = {gpus:g}), got null"
            )


def check_fit(plan: Plan) -> None:
    """Raise InputError if cluster.gpu_gb is set and a GPU needs more memory than that."""
    gpu_gb = plan.config.cluster.gpu_gb
    for load in gpu_loads(plan):
        if gpu_gb is not None and load.min_gpu_bytes > gpu_gb * GB:
            raise InputError(
                f"cluster.gpu_gb: at least {math.ceil(load.min_gpu_bytes / GB)} for a GPU of "
                f"{load.roles} (about {load.fixed_bytes / GB:.3g} GB"
                f"{' and a KV cache' if load.token_bytes else ''}), got {gpu_gb:g}"
            )


def smallest_gpu_gb(plan: Plan) -> int | None:
    """Return the smallest of GPU_SIZES, in GB, on which every GpuLoad fits.

    None if none of them is large enough, or the run uses no GPU.
    """
    most = max((load.min_gpu_bytes for load in gpu_loads(plan)), default=0.0)
    return next((size for size in GPU_SIZES if size * GB >= most), None) if most else None
