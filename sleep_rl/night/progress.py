"""Checkpoints inside a consolidation: save and load its data, random state and counters."""

from __future__ import annotations

import random
from dataclasses import dataclass

from sleep_rl.contracts.errors import RunError
from sleep_rl.night.batches import BatchComposer
from sleep_rl.night.plan import ConsolidationPlan
from sleep_rl.night.record import ConsolidationRecord
from sleep_rl.night.sequences import NightData, pack, unpack
from sleep_rl.session.context import RunContext

DATA = ("new", "unconditional", "rehearsed", "synthetic")
SHUFFLED = ("new", "unconditional", "synthetic")  # EpochSamplers, whose position is saved


@dataclass(frozen=True)
class Resumed:
    """The checkpoint of an interrupted consolidation after `step` optimizer steps."""

    step: int
    learner: str  # path of the learner's part
    data: NightData
    left: dict[str, list[int]]  # sampler -> positions left in its epoch


def save_progress(
    run: RunContext,
    rng: random.Random,
    composer: BatchComposer,
    record: ConsolidationRecord,
    data: NightData,
    step: int,
) -> None:
    """Checkpoint this consolidation after `step` optimizer steps."""
    version, internal, gauss = rng.getstate()
    state = {
        "plan": composer.plan.journal_fields,
        "rng": [version, list(internal), gauss],
        "record": record.state(),
        "data": {name: pack(getattr(data, name)) for name in DATA},
        "left": {name: getattr(composer, name).left for name in SHUFFLED},
    }
    run.progress.save_partial(run, step, state)
    # A process that resumes here starts with empty caches, so this one must continue with empty
    # ones.
    run.crew.drop_caches()


def load_progress(
    run: RunContext, plan: ConsolidationPlan, rng: random.Random, record: ConsolidationRecord
) -> Resumed | None:
    """Read the checkpoint of an interrupted consolidation; None if there is none.

    Restores `rng` and `record`. Raises RunError if the checkpoint belongs to another consolidation
    or cannot be read.
    """
    partial = run.progress.partial
    if partial is None:
        return None
    try:
        state = partial.state
        if state["plan"] != plan.journal_fields:
            raise ValueError(f"it belongs to {state['plan']}")
        version, internal, gauss = state["rng"]
        rng.setstate((version, tuple(internal), gauss))
        record.restore(state["record"])
        data = NightData(**{name: unpack(state["data"][name]) for name in DATA})
        left = {name: list(state["left"][name]) for name in SHUFFLED}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise RunError(
            f"{plan.title}: cannot resume from the checkpoint of {partial.learner} ({error}); "
            "remove its folder to restart this night"
        ) from error
    return Resumed(partial.step, partial.learner, data, left)


def restore_samplers(composer: BatchComposer, left: dict[str, list[int]]) -> None:
    """Restore the positions of the EpochSamplers."""
    for name, positions in left.items():
        getattr(composer, name).restore(positions)
