"""Compare the time of an asynchronous night with that of its slower side alone.

    # two nights of the embedded task on Ray, about three minutes
    .venv/bin/python benchmarks/overlap.py [--steps 300] [section.key=value ...]

One core is for the rollouts and one for the learner. In a synchronous night (sleep.lag=0) rollouts
and learner alternate: the total seconds of sampling and scoring, and those of optimizer steps, are
the times of each side alone. The same night with sleep.lag=1 is timed from its first sample to its
last push.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from sleep_rl.journal.journal import read

COMMON = (
    "task.days=1",
    "rollouts.workers=1",
    "baselines.run=[]",
    "evaluate.contexts=[]",
    "learners.threads=1",
)


def run_night(lag: int, steps: int, overrides: list[str]) -> list[dict]:
    """Run a life of one night; return its journal's records."""
    with tempfile.TemporaryDirectory() as folder:
        name = f"lag{lag}"
        command = [
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
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return read(Path(folder) / name / "metrics.jsonl")


def student_samples(records: list[dict]) -> list[dict]:
    return [r for r in records if r["kind"] == "sample" and r["weights"] == "student"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()

    synchronous = run_night(0, arguments.steps, arguments.overrides)
    rounds = {r["round"]: r for r in synchronous if r["kind"] == "flow"}
    sampling_s = sum(r["seconds"] for r in student_samples(synchronous))
    rollouts_s = sampling_s + sum(r["rewards_s"] for r in rounds.values())
    learner_s = sum(r["trained_s"] for r in rounds.values())

    asynchronous = run_night(1, arguments.steps, arguments.overrides)
    first = student_samples(asynchronous)[0]
    pushes = [r for r in asynchronous if r["kind"] == "push" and r["name"] == "student"]
    # a record is written at the end of its call
    night_s = pushes[-1]["t"] - (first["t"] - first["seconds"])
    flow = [r for r in asynchronous if r["kind"] == "flow"]
    print(f"{arguments.steps} steps in {len(rounds)} rounds")
    print(f"rollouts alone      {rollouts_s:7.1f} s")
    print(f"learner alone       {learner_s:7.1f} s")
    print(
        f"asynchronous night  {night_s:7.1f} s   {night_s / max(rollouts_s, learner_s):.2f} x "
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
