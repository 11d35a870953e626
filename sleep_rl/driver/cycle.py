"""The main job: a model lives through its days (paper.md sections 2 and 3). Start reading here."""

from __future__ import annotations

from dataclasses import replace

from sleep_rl.config.schema import Config
from sleep_rl.contracts.records import TEACHER, Day
from sleep_rl.dreaming.cycle import dream
from sleep_rl.driver import retention_check
from sleep_rl.driver.baselines import registry as baselines
from sleep_rl.driver.evaluation import ask_before_night, evaluate
from sleep_rl.driver.measures.drift import sample_texts
from sleep_rl.night.consolidation import Consolidation
from sleep_rl.night.plan import plan_consolidation
from sleep_rl.schedule import ScheduledConsolidation, by_night
from sleep_rl.session.context import RunContext
from sleep_rl.session.resumable import stage


def live(run: RunContext) -> None:
    """Run the life: each day wake, consolidate, reset, dream, evaluate; and train the baselines."""
    run = replace(run, drift_texts=begin(run))
    nights = by_night(run.config.schedule(len(run.task.days())))
    policy = False  # the model itself dreams until a dream was rewarded
    row = evaluate(run, after="base", lived=0)
    if run.config.model.teachers:
        inherit(run, nights[0])
        row = evaluate(run, after="night 0", lived=0)
        save(run, 0)
    best = row
    answered = []  # by the untouched base, before each night
    for night, day in enumerate(run.task.days(), start=1):
        wake(run, day, night)
        answered.append(ask_before_night(run, day, night))
        retention_check.save_states(run, night, policy)
        steps = sleep(run, day, nights[night])
        policy_after = dream(run, night, row, policy)
        row_after = evaluate(run, after=f"night {night}", lived=night, answered=answered)
        drop = retention_check.excessive_drop(run.config, best, row_after)
        if drop:
            row = retention_check.roll_back(run, night, drop, policy, answered)
        else:
            row = row_after
            policy = policy_after
        best = retention_check.best_so_far(best, row)
        save(run, night)
        baselines.after_night(run, day, night, steps)
    baselines.after_life(run)


@stage("begin", switch="")
def begin(run: RunContext) -> list[list]:
    """Push the initial memory to the rollout workers, and save it for the baselines. Return texts
    of the untouched base, on which drift is measured.
    """
    run.crew.push(TEACHER, TEACHER)
    baselines.save_base(run)
    return sample_texts(run)


@stage("inherit", switch="model.teachers", optional=True)
def inherit(run: RunContext, scheduled: list[ScheduledConsolidation]) -> None:
    """Seed the models of model.teachers into level 1: night 0 (paper.md section 1)."""
    run.crew.start_teachers()
    for consolidation in scheduled:
        consolidate(run, consolidation, None)
    run.crew.stop_teachers()
    baselines.save_base(run)


@stage("save/{night}", switch=Config.days_key)
def save(run: RunContext, night: int) -> None:
    """Save the memory after a night, as <run>/memory/night-<n>."""
    run.save(night)


@stage("wake/{night}", switch=Config.days_key)
def wake(run: RunContext, day: Day, night: int) -> None:
    """Add the gradients of the day's documents to the open chunk of every level (equation 2).

    Without wake updates (wake.lr 0), and on a day that only deletes documents, it does nothing.
    """
    if run.config.wake.lr == 0 or not day.documents:
        return
    count = len(day.documents)
    with (
        run.console.phase(f"{day.name}: wake", total=count) as tick,
        run.timed("wake", day=day.name, step=count) as record,
    ):
        record |= run.crew.learn.wake([run.codec.document(d) for d in day.documents])
        tick(count)


def sleep(run: RunContext, day: Day, scheduled: list[ScheduledConsolidation]) -> int:
    """Run the night's consolidations: the levels that are due, slow to fast, then the context
    window with the day's documents; then reset the context window. Return the optimizer steps of
    the last one.
    """
    for consolidation in scheduled:
        steps = consolidate(run, consolidation, day)
    if run.config.sleep.reset:
        run.crew.drop_caches()  # the context window and every cache of it
    return steps


@stage("consolidate/{scheduled.night}/{scheduled.sender}", switch="model.chunks")
def consolidate(run: RunContext, scheduled: ScheduledConsolidation, day: Day | None) -> int:
    """Seed the knowledge of the sender into the next slower level (paper.md section 3); return the
    optimizer steps that it took.

    Sender 0 is the context window, whose documents only the teacher has. `day`: None in night 0.
    """
    learn = run.crew.learn
    plan = plan_consolidation(run.config, scheduled.night, scheduled.sender, scheduled.steps, day)
    # (a) compute: prospective weights, reset sender, one more expert; not applied
    learn.open_night(scheduled.receiver, scheduled.due)
    # D ~ T: about documents, answers to rehearsed prompts, unconditional samples
    consolidation = Consolidation.resume(run, plan) or Consolidation.begin(run, plan, day)
    # (b) consolidate: y ~ S(.|x) without the document, r(y), and L_KS minimised over the new expert
    consolidation.train()
    # (c) update: apply the prospective weights, reset the sender, keep the new expert
    learn.commit_night()
    run.crew.push(TEACHER, TEACHER)
    consolidation.finish()
    if day is not None:
        baselines.keep_data(run, plan, consolidation.data)
    return consolidation.plan.steps
