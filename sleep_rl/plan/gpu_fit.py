"""What lies on one GPU, and whether it fits: sums of a plan's sizes, as rough as their parts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import InputError
from sleep_rl.plan.types import Plan

GB = 1e9
SIZES = (16, 24, 40, 48, 80, 141, 180)  # GB of GPUs on the market
VLLM_SHARE = 0.92  # of a GPU's memory: vLLM's default for gpu_memory_utilization


@dataclass(frozen=True)
class Load:
    """What one GPU holds: `held` bytes and, where `token` is not 0, a KV cache that takes what is
    left of the `share` of the GPU which its engine may use, `token` bytes for each token and room
    for `longest` of them at least.
    """

    who: str
    held: float
    share: float = 1.0
    token: float = 0.0
    longest: int = 0

    @property
    def need(self) -> float:
        """Bytes of the smallest GPU that will do."""
        return (self.held + self.longest * self.token) / self.share

    def cache(self, gpu: float) -> float:
        """Bytes of the KV cache on a GPU of so many."""
        return gpu * self.share - self.held if self.token else 0.0


def loads(plan: Plan) -> tuple[Load, ...]:
    """One Load per kind of GPU: one for each role whose workers have whole GPUs, and one for those
    that share them, taken to lie beside one another until a GPU is full.
    """
    c = plan.config
    out = []
    shared = []
    sizes = {"rollout": plan.rollout, "learner": plan.learner, "critic": plan.critic}
    for actor in plan.actors:
        size = sizes.get(actor.role)
        if size is None or actor.gpus == 0:  # a reward model's size is not known here
            continue
        if actor.gpus < 1:
            shared.append((actor, size.total))
        elif size.cache is None:
            longest = c.rollouts.engine.get("max_model_len") or plan.base.positions or 1
            out.append(
                Load(
                    actor.role,
                    size.total / actor.gpus,
                    utilization(c.rollouts.engine),
                    plan.token_bytes / actor.gpus,
                    longest,
                )
            )
        else:
            out.append(Load(actor.role, size.total / actor.gpus))
    if shared:
        gpus = math.ceil(sum(a.count * a.gpus for a, _ in shared) - 1e-6)
        out.append(
            Load(
                " + ".join(a.role for a, _ in shared),
                sum(a.count * total for a, total in shared) / gpus,
            )
        )
    return tuple(out)


def utilization(engine: dict) -> float:
    """The share of a GPU that vLLM takes for itself, or finds free before it starts."""
    return engine.get("gpu_memory_utilization") or VLLM_SHARE


def check_shares(config: Config) -> None:
    """Engines on a shared GPU. Raises InputError where vLLM would not start, or would leave nothing
    to the others.
    """
    for where, gpus, engine in (
        ("rollouts", config.rollouts.gpus, config.rollout_engine),
        ("critics", config.critics.gpus if config.dream.rounds else 0, config.critic_engine),
    ):
        if not 0 < gpus < 1:
            continue
        if utilization(engine) > gpus:
            raise InputError(
                f"{where}.engine.gpu_memory_utilization: at most {where}.gpus = "
                f"{gpus:g} on a shared GPU, since vLLM "
                f"starts only where that much is free, got {utilization(engine):g}"
            )
        if not engine.get("kv_cache_memory_bytes"):
            raise InputError(
                f"{where}.engine.kv_cache_memory_bytes: a number of bytes on a "
                f"shared GPU ({where}.gpus = {gpus:g}), "
                f"got null"
            )


def check_fit(plan: Plan) -> None:
    """Raises InputError when cluster.gpu_gb is given and a GPU's load is larger."""
    there = plan.config.cluster.gpu_gb
    for load in loads(plan):
        if there is not None and load.need > there * GB:
            raise InputError(
                f"cluster.gpu_gb: at least {math.ceil(load.need / GB)} for what a "
                f"GPU of {load.who} holds (about "
                f"{load.held / GB:.3g} "
                f"GB{' and a KV cache' if load.token else ''}), got {there:g}"
            )


def smallest(plan: Plan) -> int | None:
    """GB of the smallest GPU of SIZES that holds every Load; None where there is none, or no GPU is
    asked for.
    """
    most = max((load.need for load in loads(plan)), default=0.0)
    return next((size for size in SIZES if size * GB >= most), None) if most else None
