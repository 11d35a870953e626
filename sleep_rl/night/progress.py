"""Checkpoints inside a consolidation: what it writes, and what it resumes from."""

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
SHUFFLED = ("new", "unconditional", "synthetic")  # epoch samplers: what is left of an epoch counts


@dataclass(frozen=True)
class Resumed:
    """What a consolidation continues with after `step` optimizer steps."""

    step: int
    learner: str  # path of the learner's part
    data: NightData
    left: dict[str, list[int]]  # sampler -> what is still to come in its epoch


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
    # A process that resumes here begins with empty caches; this one goes on with empty ones, too.
    run.crew.forget()


def load_progress(
    run: RunContext, plan: ConsolidationPlan, rng: random.Random, record: ConsolidationRecord
) -> Resumed | None:
    """Read the checkpoint of an interrupted consolidation; None if there is none.

    Restores `rng` and `record`. Raises RunError if it belongs to another consolidation.
    """
    partial = run.progress.partial
    if partial is None:
        return None
    try:
        state = partial.state
        if state["plan"] != plan.journal_fields:
            raise ValueError(f"it is of {state['plan']}")
        version, internal, gauss = state["rng"]
        rng.setstate((version, tuple(internal), gauss))
        record.restore(state["record"])
        data = NightData(**{name: unpack(state["data"][name]) for name in DATA})
        left = {name: list(state["left"][name]) for name in SHUFFLED}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise RunError(
            f"{plan.title}: {partial.learner} and what lies beside it cannot be gone on from "
            f"({error}); remove that folder to do this night from its beginning"
        ) from error
    return Resumed(partial.step, partial.learner, data, left)


def restore_samplers(composer: BatchComposer, left: dict[str, list[int]]) -> None:
    """Continue the epochs of the samplers where the checkpoint was written."""
    for name, positions in left.items():
        getattr(composer, name).left = positions
