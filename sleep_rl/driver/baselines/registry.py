"""Baselines by name: each is a module of this folder, chosen by `baselines.run`.

A baseline uses the same learner, base and experts as the sleeping model; only its training differs.
Its module has STEPS (default of `baselines.steps`; None: as many as the consolidation of a day's
documents, sleep.steps) and one or both of `after_night(run, day, night, steps)` and
`after_life(run, steps)`. They need not restore the learner's memory: that of the sleeping model is
restored after the call. A module may also have NATURAL_STEPS, in place of STEPS for tasks in
natural language, and NEEDS_DATA = True if it reads the data of the night (`night.saved_data`).
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.records import Day
from sleep_rl.night.plan import CONTEXT, ConsolidationPlan
from sleep_rl.night.saved_data import save_data
from sleep_rl.night.sequences import NightData
from sleep_rl.session.context import RunContext
from sleep_rl.session.resumable import stage

NO_BASELINES = ("registry", "training")
# Tags of memory states in the learner: the sleeping model's, and the initial one of all baselines.
SLEEP = "sleep"
BASE = "base"


def names() -> tuple[str, ...]:
    """Return the names of all baselines, sorted."""
    found = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    return tuple(sorted(name for name in found if name not in NO_BASELINES))


def check(config: Config) -> None:
    """Raise InputError for an unknown baseline, and for steps that are not an integer >= 1."""
    chosen = config.baselines.run
    allowed = ", ".join(names())
    unknown = [name for name in chosen if name not in names()]
    if unknown or len(set(chosen)) < len(chosen):
        raise InputError(f"baselines.run: some of {allowed}, each once, got {str(chosen)[:100]}")
    for name, steps in config.baselines.steps.items():
        if name not in names() or type(steps) is not int or steps < 1:
            raise InputError(
                f"baselines.steps: {allowed}, each with an integer >= 1, got {name}: "
                f"{str(steps)[:50]}"
            )


def planned_steps(config: Config, nights: int, *, natural: bool = False) -> dict[str, int]:
    """Return name -> optimizer steps of each chosen baseline over the whole life.

    `natural`: whether the task is in natural language.
    """
    planned = {}
    for name in config.baselines.run:
        times = nights if hasattr(_module(name), "after_night") else 1
        planned[name] = times * steps_of(config, name, natural=natural)
    return planned


def steps_of(config: Config, name: str, *, natural: bool, night_steps: int = 0) -> int:
    """Return the optimizer steps of one training of a baseline.

    `night_steps`: of the night whose budget it has; 0: not known yet, sleep.steps at most.
    """
    module = _module(name)
    default = getattr(module, "NATURAL_STEPS", module.STEPS) if natural else module.STEPS
    return config.baselines.steps.get(name, default or night_steps or config.sleep.steps)


def keep_data(run: RunContext, plan: ConsolidationPlan, data: NightData) -> None:
    """Save the data of a day's consolidation if a chosen baseline reads it."""
    needed = any(getattr(_module(name), "NEEDS_DATA", False) for name in run.config.baselines.run)
    if needed and plan.sender == CONTEXT:
        save_data(run.folder, plan.night, data)


def save_base(run: RunContext) -> None:
    """Save the current memory as the initial one of every baseline."""
    run.crew.learn.save_state(BASE)


def after_night(run: RunContext, day: Day, night: int, night_steps: int) -> None:
    """Run every chosen baseline that trains after each night; `night_steps`: optimizer steps of the
    night, which those of the same budget take as well.
    """
    for name in run.config.baselines.run:
        if hasattr(_module(name), "after_night"):
            _after_night(run, name, day, night, night_steps)


def after_life(run: RunContext) -> None:
    """Run every chosen baseline that trains at the end of the life."""
    for name in run.config.baselines.run:
        if hasattr(_module(name), "after_life"):
            _after_life(run, name)


@stage("baseline/{name}/{night}", switch="baselines.run", optional=True)
def _after_night(run: RunContext, name: str, day: Day, night: int, night_steps: int) -> None:
    steps = steps_of(run.config, name, natural=run.codec.natural, night_steps=night_steps)
    run.crew.learn.save_state(SLEEP)
    _module(name).after_night(run, day, night, steps)
    run.crew.learn.load_state(SLEEP)


@stage("baseline/{name}/end", switch="baselines.run", optional=True)
def _after_life(run: RunContext, name: str) -> None:
    run.crew.learn.save_state(SLEEP)
    _module(name).after_life(run, steps_of(run.config, name, natural=run.codec.natural))
    run.crew.learn.load_state(SLEEP)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"sleep_rl.driver.baselines.{name}")
