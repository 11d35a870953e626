"""Journals of runs that the live page shows."""

from __future__ import annotations

import time

from sleep_rl.journal.journal import Journal

EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
CONFIG = {
    "task": {"name": "world", "days": 2},
    "rollouts": {"workers": 2},
    "learners": {"world_size": 1},
    "reward": {"workers": 1, "semantic": "none"},
}


def begin(folder, config=CONFIG):
    (folder / "run.json").write_text("{}")
    journal = Journal(folder / "metrics.jsonl")
    journal.log(
        "run",
        config=config,
        task="world",
        model="tiny",
        started=time.time(),
        commit="3f2a9c1",
        seeds=[7],
    )
    return journal


def seed(journal, night, *steps, of=4, **more):
    for step in steps:
        journal.log(
            "seed",
            night=night,
            sender=0,
            day=f"day {night}",
            step=step,
            steps=of,
            loss=night + step / 10,
            divergence=0.5,
            reward_mean=0.8,
            logprob_gap=1e-6,
            tokens_trained=900,
            seconds=0.5,
            **more,
        )


def evaluated(journal, after, **row):
    journal.log(
        "evaluate", after=after, method="sleep", row=row, open_book=None, n=dict.fromkeys(row, 10)
    )


def wicked(folder):
    """Write a run in which every text is a script."""
    journal = begin(folder, {**CONFIG, "note": EVIL})
    seed(journal, 1, 0)
    evaluated(journal, "base", known=1.0)
    evaluated(journal, "night 1", known=1.0, **{EVIL: 0.5})
    journal.log(
        "completion",
        when="after",
        day=EVIL,
        question="q",
        prompt=EVIL,
        answer=EVIL,
        completion=EVIL,
        score=1,
    )
    for name in (EVIL, '"><script>1</script>'):
        journal.log("push", name=name, version=1, bytes=1, seconds=0.1)
        journal.log("baseline", method=name, day=EVIL, step=0, steps=1, loss=1.0)
    journal.log("written", night=1, sender=0, new=1, unconditional=1, examples=[EVIL])
    journal.log(
        "dream",
        night=1,
        round=1,
        task=EVIL,
        number=0,
        text=EVIL,
        reason="",
        kept=True,
        reward=1,
        gain=0.1,
        importance=1.0,
        tau_before=0.5,
        taus=[0.6],
        held_out=0.1,
        logprob=-1.0,
    )
    journal.log("failure", where=EVIL, reason=EVIL, count=1)
    journal.log("restarted", worker=EVIL, reason=EVIL)
    (folder / "logs").mkdir()
    (folder / "logs" / "rollout-0.log").write_text(EVIL)
    return journal
