"""The main job: a model lives through its days (paper.md sections 2 and 3). Start reading here."""

from __future__ import annotations

from sleep_rl.config.schema import Config
from sleep_rl.contracts.records import STUDENT, TEACHER, Day
from sleep_rl.dreaming.cycle import dream
from sleep_rl.driver import baselines, retention_gate
from sleep_rl.driver.evaluation import before_night, evaluate
from sleep_rl.night.consolidation import Night, seed
from sleep_rl.session.context import RunContext
from sleep_rl.session.resumable import stage


def live(run: RunContext) -> None:
    """Wake, consolidate, reset, dream, evaluate: day after day; then the upper bound of training on
    all days at once.
    """
    begin(run)
    policy = False  # dreams are the model's own, until some were rewarded
    row = evaluate(run, after="base", lived=0)
    if run.config.model.teachers:
        inherit(run)
        row = evaluate(run, after="night 0", lived=0)
        save(run, 0)
    for night, day in enumerate(run.task.days(), start=1):
        wake(run, day)
        before_night(run, day, night)
        retention_gate.remember(run, policy)
        sleep(run, day, night)
        dreaming = dream(run, night, row, policy)
        row, stays = retention_gate.passed(
            run, night, row, evaluate(run, after=f"night {night}", lived=night), policy
        )
        policy = dreaming if stays else policy
        save(run, night)
        baselines.sft(run, day, night)
    baselines.joint(run)


@stage
def begin(run: RunContext) -> None:
    """The rollout workers get the untouched memory, and the baselines theirs."""
    run.crew.push(TEACHER, TEACHER)
    baselines.remember(run)


@stage
def inherit(run: RunContext) -> None:
    """Night 0: other, smaller models are seeded into level 1, as later the context window is
    (paper.md section 1).
    """
    run.crew.start_teachers()
    consolidate(run, 0, 0, None, ())
    run.crew.stop_teachers()
    baselines.remember(run)


@stage
def save(run: RunContext, night: int) -> None:
    """The memory after a night, as <run>/memory/night-<n>."""
    run.save(night)


@stage
def wake(run: RunContext, day: Day) -> None:
    """New data comes in: it stands in the context window, and its gradients join every level's
    chunk (equation 2).
    """
    if run.config.wake.lr == 0:
        return
    count = len(day.documents)
    with (
        run.console.phase(f"{day.name}: wake", total=count) as tick,
        run.timed("wake", day=day.name, step=count) as record,
    ):
        record |= run.crew.learn.wake([run.texts.document(d) for d in day.documents])
        tick(count)


def sleep(run: RunContext, day: Day, night: int) -> None:
    """Every level that is due moves into the next slower one, slow to fast: a receiver is emptied
    before it receives. Last of all the context window, which holds the day's documents, moves into
    level 1.
    """
    updates = set(due(run.config, night))
    for sender in senders(run.config, night):
        mine = updates if sender == 0 else updates & {sender, sender + 1}
        consolidate(run, night, sender, day, tuple(sorted(mine)))
        updates -= mine
    if run.config.sleep.reset:
        run.crew.forget()  # the documents leave the context window and every cache of it


@stage
def consolidate(
    run: RunContext, night: int, sender: int, day: Day | None, due: tuple[int, ...]
) -> None:
    """Knowledge Seeding from the sender (0: the context window, whose documents only the teacher
    has) into the next level (paper.md section 3). From a memory level nothing of the day is
    learned. `due`: levels whose own weights move by equation 2 with this consolidation.
    """
    learn, data = run.crew.learn, Night(run, night, sender, day)
    # (a) compute: prospective weights, reset sender, one more expert; not applied
    learn.open_night(sender + 1, due)
    if not data.goes_on():  # a night that was cut off, where its newest checkpoint stands
        run.crew.push(TEACHER, TEACHER)
        run.crew.push(STUDENT, STUDENT)
        data.write()  # D ~ T: about documents, answers to rehearsed prompts, self-replay
    # (b) consolidate: y ~ S(.|x) without the document, r(y), and L_KS minimised over the new expert
    seed(run, data)
    # (c) update: apply the prospective weights, reset the sender, keep the new expert
    learn.commit_night()
    run.crew.push(TEACHER, TEACHER)
    data.close()


def senders(config: Config, night: int) -> list[int]:
    """Who moves on in a night, slow to fast."""
    return [sender for n, sender in config.consolidations if n == night]


def due(config: Config, night: int) -> list[int]:
    """Levels whose chunk ends in a night; in the last one every open chunk is flushed."""
    return [
        level
        for level, c in enumerate(config.model.chunks, start=1)
        if night % c == 0 or night == config.nights
    ]
