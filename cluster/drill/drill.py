"""`sleep-rl drill CONFIG`: what happens to a run when things break, tried on real runs.

Each run is a real `sleep-rl run` of the config, in a process of its own, upon which faults come
from outside while its journal shows that it is in the phase they are meant for. It has to end with
the same bytes of memory and the same last evaluation as the run that nothing happened to, by
itself, or after `sleep-rl resume` where it says that it ended.
"""

from __future__ import annotations

from collections.abc import Callable

from cluster.drill.drilled_run import DrilledRun
from cluster.drill.scenarios import PHASES, ending, scenarios
from sleep_rl.config.loader import load
from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.journal.text import aligned, clock
from sleep_rl.runs.run_dir import new_folder


def drill(path: str, overrides: list[str], say: Callable[[str], None] = print) -> str:
    """Run every scenario of the drill and return the table of what happened.

    Raises RunError that names the rows which failed, and InputError for a config that cannot be
    drilled.
    """
    config = load(path, overrides)
    if config.cluster.backend != "ray":
        raise InputError(
            f"drill: cluster.backend ray, where workers are processes, got {config.cluster.backend}"
        )
    home = new_folder(config, suffix="-drill")
    fixed = [
        *overrides,
        "sleep.lag=0",
        f"cluster.restarts={4 * len(PHASES)}",
        "cluster.report_after_s=20",
    ]
    say(f"{home}: what each life printed, and its run folder")
    quiet = DrilledRun("undisturbed", path, fixed, home)
    if (code := quiet.wait()) != 0:
        raise RunError(f"drill: already the undisturbed life fails: {ending(quiet, code)}")
    expected = quiet.outcome()
    rows = []
    say(f"undisturbed: {len(expected[0])} nights in {clock(quiet.records()[-1]['seconds'])}")
    for scenario in scenarios(config):
        for row in scenario(path, fixed, home, expected):
            rows.append(row)
            say(f"{row.what}, {row.where}: {row.happened}: {row.word}")
    table = aligned(
        [["fault", "where", "what happened", ""]]
        + [[r.what, r.where, r.happened, r.word] for r in rows]
    )
    failed = [row for row in rows if row.passed is False]
    if failed:
        say(table)
        raise RunError(
            f"drill: {len(failed)} of {len(rows)} rows failed: "
            f"{', '.join(f'{r.what} ({r.where})' for r in failed)}"
        )
    return f"{table}\n{sum(row.passed is True for row in rows)} of {len(rows)} passed"
