"""`sleep-rl drill CONFIG`: inject faults into real runs and check that they recover.

Each run is a `sleep-rl run` of the config in a process of its own. Faults are injected from outside
while its journal shows that it is in the fault's phase. The run must end with the same bytes of
memory and the same last evaluation as the undisturbed run: by itself, or after `sleep-rl resume`
where it is expected to exit.
"""

from __future__ import annotations

from collections.abc import Callable

from cluster.drill.drilled_run import DrilledRun
from cluster.drill.scenarios import PHASES, failure, scenarios
from sleep_rl.config.loader import load
from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.journal.text import aligned, clock
from sleep_rl.runs.run_dir import new_folder


def drill(path: str, overrides: list[str], say: Callable[[str], None] = print) -> str:
    """Run every scenario and return the table of results; `say`: prints a line.

    Raises RunError that names the failed rows, and InputError for a config without Ray.
    """
    config = load(path, overrides)
    if config.cluster.backend != "ray":
        raise InputError(
            f"drill: cluster.backend ray is needed, where workers are processes, got "
            f"{config.cluster.backend}"
        )
    home = new_folder(config, suffix="-drill")
    fixed = [*overrides, "sleep.lag=0", f"cluster.restarts={4 * len(PHASES)}"]
    say(f"{home}: the output and the folder of each run")
    undisturbed = DrilledRun("undisturbed", path, fixed, home)
    if (code := undisturbed.wait()) != 0:
        raise RunError(f"drill: the undisturbed run failed: {failure(undisturbed, code)}")
    expected = undisturbed.outcome()
    rows = []
    seconds = undisturbed.records()[-1]["seconds"]
    say(f"undisturbed: {len(expected[0])} nights in {clock(seconds)}")
    for scenario in scenarios(config):
        for row in scenario(path, fixed, home, expected):
            rows.append(row)
            say(f"{row.fault}, {row.where}: {row.result}: {row.status}")
    table = aligned(
        [["fault", "where", "result", ""]] + [[r.fault, r.where, r.result, r.status] for r in rows]
    )
    failed = [row for row in rows if row.passed is False]
    if failed:
        say(table)
        raise RunError(
            f"drill: {len(failed)} of {len(rows)} rows failed: "
            f"{', '.join(f'{r.fault} ({r.where})' for r in failed)}"
        )
    return f"{table}\n{sum(row.passed is True for row in rows)} of {len(rows)} passed"
