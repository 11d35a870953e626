"""`sleep-rl ablate`: run a config with one part switched off at a time, over several seeds.

Every run is a separate process with its own folder, <run.dir>/<run.name>-<row>-s<seed>. A folder
with a successful run of the same configuration is not run again; a failed run is named in the
table.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sleep_rl.config.loader import dump, load
from sleep_rl.config.schema import Config
from sleep_rl.config.secrets import without_secrets
from sleep_rl.contracts.errors import InputError
from sleep_rl.journal.journal import read, read_entries
from sleep_rl.journal.retention import KNOWN, Retention, wilson_interval
from sleep_rl.journal.schema import Evaluation
from sleep_rl.journal.text import NO_VALUE, aligned
from sleep_rl.runs.run_dir import numbered

WHOLE = "whole"
ROWS: dict[str, tuple[str, ...]] = {
    WHOLE: (),
    "no-imitation": ("objective.alpha=1",),
    "no-semantic-reward": ("reward.gamma=null", "reward.semantic=none"),
    "no-expansion": ("sleep.expansion=false",),
    "no-replay": ("replay.share=0",),
    "no-rehearsal": ("rehearsal.share=0",),
    "uniform-rehearsal": ("rehearsal.priority=uniform",),
    "no-reading": ("reading.rows=0",),
    "no-reset": ("sleep.reset=false",),
    "no-sparsity": ("model.top_k={experts}",),
    "one-level": ("model.chunks=[1]",),
    "no-dreaming": ("dream.rounds=0",),
    "no-selection": ("dream.importance=random",),
    "no-random-expert": ("dream.novelty=false",),
    "one-seed": ("dream.copies.seeds=1",),
}
"""Row -> overrides that switch the part off. A row that does not change the config is skipped."""
DREAM_ROWS = ("no-dreaming", "no-selection", "no-random-expert", "one-seed")
"""Rows that need dream.rounds above 0."""


@dataclass(frozen=True)
class AblationRun:
    """One run of a row: its configuration, and the overrides that give it."""

    config: Config
    overrides: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.config.run.dir) / self.config.run.name


def ablation_runs(
    path: str, overrides: Sequence[str], names: Sequence[str], seeds: int
) -> dict[str, list[AblationRun]]:
    """Return row -> one run per seed, for the rows in `names`, or all that change the config.

    Raises InputError for an unknown row and for an invalid config of a row.
    """
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise InputError(f"--rows: allowed are {', '.join(ROWS)}, got {', '.join(unknown)}")
    whole = load(path, overrides)
    rows: dict[str, list[AblationRun]] = {}
    for name in dict.fromkeys([WHOLE, *(names or ROWS)]):
        if name in DREAM_ROWS and not whole.dream.rounds:
            continue
        keys = [key.format(experts=whole.model.experts) for key in ROWS[name]]
        try:
            is_unchanged = load(path, [*overrides, *keys]) == whole
        except InputError:
            # e.g. without its reset a level does not have enough experts
            is_unchanged = False
            keys.append("sleep.on_full=recycle_oldest")
        if is_unchanged and name != WHOLE:
            continue
        rows[name] = [
            _run(path, [*overrides, *keys], whole, name, seed)
            for seed in range(whole.run.seed, whole.run.seed + seeds)
        ]
    return rows


def _run(path: str, overrides: Sequence[str], whole: Config, row: str, seed: int) -> AblationRun:
    of_run = [f"run.name={whole.run.name}-{row}-s{seed}", f"run.seed={seed}"]
    if whole.wandb.group is None:  # the runs form one group in W&B
        of_run.append(f"wandb.group={whole.run.name}-ablation")
    overrides = (*overrides, *of_run)
    return AblationRun(load(path, overrides), overrides)


def ablate(
    path: str,
    overrides: Sequence[str],
    names: Sequence[str],
    seeds: int,
    say: Callable[[str], object] = print,
) -> str:
    """Run every missing row and seed, one after another; return the table.

    Raises InputError if a folder has a run with another configuration.
    """
    rows = ablation_runs(path, overrides, names, seeds)
    runs = [run for of_row in rows.values() for run in of_row]
    reasons: dict[Path, str] = {}
    for number, run in enumerate(runs, start=1):
        status = _status(run)
        say(f"{number}/{len(runs)} {run.folder}" + (": exists" if status == "ok" else ""))
        if status == "other":
            raise InputError(
                f"{run.folder}: has a run with another configuration; choose another run.name or "
                "remove it"
            )
        if status == "ok":
            continue
        if status == "failed":
            run.folder.rename(_failed_name(run.folder))
        command = [sys.executable, "-m", "sleep_rl", "run", path, *run.overrides]
        code = subprocess.run(command).returncode
        if code:
            reasons[run.folder] = f"exit code {code}"
    return table({name: [run.folder for run in of_row] for name, of_row in rows.items()}, reasons)


def _status(run: AblationRun) -> str:
    """Return the status of a run's folder: "none", "ok", "failed" (or unfinished), or "other"
    (another configuration).
    """
    if not run.folder.exists():
        return "none"
    try:
        records = read(run.folder / "metrics.jsonl")
    except InputError:
        return "failed"
    last = {record["kind"]: record for record in records}
    expected = _without_wandb(without_secrets(dump(run.config)))
    if "run" in last and _without_wandb(last["run"]["config"]) != expected:
        return "other"
    return "ok" if last.get("done", {}).get("status") == "ok" else "failed"


def _without_wandb(config: dict) -> dict:
    """Drop section wandb, which does not affect results."""
    return {section: keys for section, keys in config.items() if section != "wandb"}


def _failed_name(folder: Path) -> Path:
    """Return a new name for the folder of a failed run, which is kept."""
    first = folder.with_name(f"{folder.name}-failed")
    return next(path for path in numbered(first) if not path.exists())


def table(rows: dict[str, list[Path]], reasons: dict[Path, str]) -> str:
    """Return the table of accuracies after the last night, one line per row.

    Its columns are the known, the earlier days, the newest day and the kinds of its deeper
    questions, if the task has any: the mean over the seeds with the 95 % interval (Wilson) of their
    pooled answers. `reasons`: folder -> why its run failed. A note says how many seeds are missing.
    """
    last = {name: _last_evaluations(folders, reasons) for name, folders in rows.items()}
    records = [record for of_row in last.values() for record in of_row]
    kinds = list(dict.fromkeys(kind for record in records for kind in record.deeper or ()))
    lines = [["row", KNOWN, "earlier days", "newest day", *kinds, "note"]]
    for name, folders in rows.items():
        days = [column for column in last[name][0].row if column != KNOWN] if last[name] else []
        columns = [[KNOWN], days[:-1], days[-1:], *([kind] for kind in kinds)]
        cells = [_cell(last[name], pooled) for pooled in columns]
        lines.append([name, *cells, _note(folders, len(last[name]), reasons)])
    return aligned(lines)


def _note(folders: list[Path], count: int, reasons: dict[Path, str]) -> str:
    notes = [f"[{count} of {len(folders)} seeds]"] if count < len(folders) else []
    notes += [f"{folder.name}: {why}" for folder, why in reasons.items() if folder in folders]
    return "; ".join(notes)


def _last_evaluations(folders: list[Path], reasons: dict[Path, str]) -> list[Evaluation]:
    """Return the last evaluation of each successful run."""
    evaluations = []
    for folder in folders:
        journal = folder / "metrics.jsonl"
        retention = Retention.of(read_entries(journal)) if journal.is_file() else Retention()
        if "sleep" in retention.methods and folder not in reasons:
            evaluations.append(retention.last("sleep"))
    return evaluations


def _cell(records: list[Evaluation], columns: list[str]) -> str:
    """Return mean and interval over the pooled answers of these columns in all records."""
    pairs = []
    for record in records:
        shares = {**record.row, **(record.deeper or {})}
        pairs += [(shares[c], record.n[c]) for c in columns if c in shares]
    answers = sum(count for _, count in pairs)
    if not answers:
        return NO_VALUE
    share = sum(value * count for value, count in pairs) / answers
    low, high = wilson_interval(share, answers)
    return f"{share:.3f} [{low:.3f}, {high:.3f}]"
