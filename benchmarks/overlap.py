"""Time of an asynchronous night against its slower side alone, with one core for the rollouts and
one for the learner.

    .venv/bin/python benchmarks/overlap.py            # two nights of the embedded task on Ray,
    about three minutes

In a night that takes turns (sleep.lag=0) either side has the machine to itself: the seconds of all
sampling and scoring, and those of all optimizer steps, are what each takes alone. The same night
with sleep.lag=1 is timed from its first sample to its last push.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from sleep_rl.journal.journal import read

COMMON = (
    "task.world.days=1",
    "rollouts.workers=1",
    "baselines.sft=false",
    "baselines.joint=false",
    "evaluate.open_book=false",
    "learners.threads=1",
    "rollouts.threads=1",
)


def night(lag: int, steps: int, overrides: list[str]) -> list[dict]:
    """The records of one night's seeding."""
    with tempfile.TemporaryDirectory() as folder:
        name = f"lag{lag}"
        subprocess.run(
            [
                sys.executable,
                "-m",
                "sleep_rl",
                "run",
                "configs/demo.yaml",
                f"run.dir={folder}",
                f"run.name={name}",
                f"sleep.lag={lag}",
                f"sleep.steps={steps}",
                *COMMON,
                *overrides,
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return read(Path(folder) / name / "metrics.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()

    turns = night(0, arguments.steps, arguments.overrides)
    rounds = {r["round"]: r for r in turns if r["kind"] == "flow"}
    student = [r for r in turns if r["kind"] == "sample" and r["weights"] == "student"]
    rollouts_s = sum(r["seconds"] for r in student) + sum(r["rewards_s"] for r in rounds.values())
    learner_s = sum(r["trained_s"] for r in rounds.values())

    ahead = night(1, arguments.steps, arguments.overrides)
    first = next(r for r in ahead if r["kind"] == "sample" and r["weights"] == "student")
    pushes = [r["t"] for r in ahead if r["kind"] == "push" and r["name"] == "student"]
    took_s = pushes[-1] - (first["t"] - first["seconds"])
    flow = [r for r in ahead if r["kind"] == "flow"]
    print(f"{arguments.steps} steps in {len(rounds)} rounds")
    print(f"rollouts alone      {rollouts_s:7.1f} s")
    print(f"learner alone       {learner_s:7.1f} s")
    print(
        f"asynchronous night  {took_s:7.1f} s   {took_s / max(rollouts_s, learner_s):.2f} x "
        "the slower side"
    )
    print(
        f"the learner waited  {sum(r['learner_waited_s'] for r in flow):7.1f} s, the rollouts "
        f"{sum(r['rollouts_waited_s'] for r in flow):.1f} s; samples at most "
        f"{max(r['newest'] - r['oldest'] for r in flow)} "
        "version apart within a round"
    )


if __name__ == "__main__":
    main()
