"""The record of a plan."""

from __future__ import annotations

from dataclasses import dataclass

from sleep_rl.config.schema import Config
from sleep_rl.model.shape import Shape
from sleep_rl.night.plan import Shares
from sleep_rl.plan.actors import Actor
from sleep_rl.plan.night_tokens import NightTokens
from sleep_rl.plan.sizes import Bytes, bytes_per_parameter
from sleep_rl.schedule import ScheduledConsolidation


@dataclass(frozen=True)
class Plan:
    """Workers, memory, steps and samples of a run. Sizes are in bytes."""

    config: Config
    base: Shape
    actors: tuple[Actor, ...]
    learner: Bytes  # per rank
    rollout: Bytes  # per engine, over all its GPUs
    critic: Bytes | None  # per critic: engine, torch model and copies; None without dreaming
    cached_tokens: int | None  # that the KV cache of an engine holds; None: vLLM sizes the cache
    push_bytes: int  # one expert of one level, over all layers
    full_bytes: int  # base and memory
    tokens: int  # of the longest training sequence with its document
    rows: Shares  # of an optimizer step
    written: int  # teacher sequences with a document, per night
    without_document: int  # teacher sequences without one, per night
    completions: int  # of the student, per night
    pass_tokens: int  # of a rank's largest pass, padding included
    rounds: int  # per night; each ends with a push of the student
    work: NightTokens  # of a night on the newest day's documents
    seconds: float  # of all nights, an estimate
    nights: int
    consolidations: tuple[ScheduledConsolidation, ...]  # of all nights
    baseline_steps: dict[str, int]  # baseline -> optimizer steps of all nights
    notes: tuple[str, ...]  # one line each

    @property
    def cpus(self) -> float:
        """CPUs of all workers."""
        return sum(a.count * a.cpus for a in self.actors)

    @property
    def gpus(self) -> float:
        """GPUs of all workers."""
        return sum(a.count * a.gpus for a in self.actors)

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in a KV cache."""
        return self.base.cached_values * bytes_per_parameter(self.config)

    @property
    def steps(self) -> int:
        """Optimizer steps of all nights, without baselines."""
        return sum(consolidation.steps for consolidation in self.consolidations)
