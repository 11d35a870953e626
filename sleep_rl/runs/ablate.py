"""`sleep-rl ablate`: the same life with one part switched off at a time, several seeds each, and
one table.

Every run is a process of its own in its own folder, <run.dir>/<run.name>-<row>-s<seed>; one that is
there already and ended well with the same configuration is not lived again. A run that fails is a
named gap in the table.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sleep_rl.config.loader import dump, load
from sleep_rl.config.schema import Config
from sleep_rl.config.secrets import without_secrets
from sleep_rl.contracts.errors import InputError
from sleep_rl.journal.journal import read, read_entries
from sleep_rl.journal.retention import KNOWN, Retention, wilson_interval
from sleep_rl.journal.schema import Evaluation
from sleep_rl.journal.text import aligned
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
    "no-dream-replay": ("dream.replay_share=0",),
}
"""Row -> the keys that switch the part off. A row that changes nothing in a config is left out."""
# need dream.rounds above 0
DREAMS = ("no-dreaming", "no-selection", "no-random-expert", "one-seed", "no-dream-replay")


def rows_of(
    path: str, overrides: Sequence[str], names: Sequence[str], seeds: int
) -> dict[str, list[tuple[Config, list[str]]]]:
    """Row -> (config, overrides) per seed. Raises InputError for an unknown row and for a config
    that a row breaks.
    """
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise InputError(f"--rows: allowed are {', '.join(ROWS)}, got {', '.join(unknown)}")
    whole = load(path, overrides)
    out: dict[str, list[tuple[Config, list[str]]]] = {}
    for name in dict.fromkeys([WHOLE, *(names or ROWS)]):
        keys = [key.format(experts=whole.model.experts) for key in ROWS[name]]
        if name in DREAMS and not whole.dream.rounds:
            continue
        try:
            same = load(path, [*overrides, *keys]) == whole
        except InputError:  # without its reset, say, a level has not enough experts
            same, keys = False, [*keys, "sleep.on_full=recycle_oldest"]
        if same and name != WHOLE:
            continue
        for seed in range(whole.run.seed, whole.run.seed + seeds):
            mine = [
                *overrides,
                *keys,
                f"run.name={whole.run.name}-{name}-s{seed}",
                f"run.seed={seed}",
            ]
            if whole.wandb.group is None:  # the sweep stands together in W&B
                mine.append(f"wandb.group={whole.run.name}-ablation")
            out.setdefault(name, []).append((load(path, mine), mine))
    return out


def ablate(path: str, overrides: Sequence[str], names: Sequence[str], seeds: int, say=print) -> str:
    """Lives every row and seed that is not there yet, one after another, and returns the table."""
    rows = rows_of(path, overrides, names, seeds)
    total, done, reasons = sum(map(len, rows.values())), 0, {}
    for name, runs in rows.items():
        for config, mine in runs:
            done += 1
            folder = Path(config.run.dir) / config.run.name
            state = _state(folder, config)
            say(f"{done}/{total} {folder}" + (": there already" if state == "ok" else ""))
            if state == "other":
                raise InputError(
                    f"{folder}: holds a run with another configuration; choose "
                    "another run.name or remove it"
                )
            if state == "ok":
                continue
            if state == "failed":
                folder.rename(_kept_name(folder))
            code = subprocess.run([sys.executable, "-m", "sleep_rl", "run", path, *mine]).returncode
            if code:
                reasons[folder] = f"exit code {code}"
    return table(
        {name: [Path(c.run.dir) / c.run.name for c, _ in runs] for name, runs in rows.items()},
        reasons,
    )


def _state(folder: Path, config: Config) -> str:
    """What a run's folder holds: "none", "ok", "failed" (or unfinished), or "other" (another
    configuration).
    """
    if not folder.exists():
        return "none"
    try:
        records = read(folder / "metrics.jsonl")
    except InputError:
        return "failed"
    kinds = {record["kind"]: record for record in records}
    if "run" in kinds and _lived(kinds["run"]["config"]) != _lived(without_secrets(dump(config))):
        return "other"
    return "ok" if kinds.get("done", {}).get("status") == "ok" else "failed"


def _lived(config: dict) -> dict:
    """A configuration without what no life depends on."""
    return {section: keys for section, keys in config.items() if section != "wandb"}


def _kept_name(folder: Path) -> Path:
    """Return a new name for what a failed attempt left: nothing is deleted."""
    first = folder.with_name(f"{folder.name}-failed")
    return next(path for path in numbered(first) if not path.exists())


def table(rows: dict[str, list[Path]], reasons: dict[Path, str]) -> str:
    """Accuracy on the known, the earlier days, the newest day and its deeper questions (of a task
    that has some) after the last night: mean over seeds, and the 95 % interval (Wilson) of all
    their answers together; in brackets how many seeds, where some failed.
    """
    last = {name: _last(folders, reasons) for name, folders in rows.items()}
    forms = list(dict.fromkeys(f for found in last.values() for r in found for f in r.forms or ()))
    lines = [["row", KNOWN, "earlier days", "newest day", *forms, "note"]]
    for name, folders in rows.items():
        found = last[name]
        days = [c for c in found[0].row if c != KNOWN] if found else []
        cells = [
            _cell(found, columns)
            for columns in ([KNOWN], days[:-1], days[-1:], *([f] for f in forms))
        ]
        failed = [
            f"{folder.name}: {reason}" for folder, reason in reasons.items() if folder in folders
        ]
        note = "; ".join(
            ([f"[{len(found)} of {len(folders)} seeds]"] if len(found) < len(folders) else [])
            + failed
        )
        lines.append([name, *cells, note])
    return aligned(lines)


def _last(folders: list[Path], reasons: dict[Path, str]) -> list[Evaluation]:
    """The last evaluation of each run that ended well."""
    found = []
    for folder in folders:
        retention = (
            Retention.of(read_entries(folder / "metrics.jsonl"))
            if (folder / "metrics.jsonl").is_file()
            else Retention()
        )
        if "sleep" in retention.methods and folder not in reasons:
            found.append(retention.last("sleep"))
    return found


def _cell(records: list[Evaluation], columns: list[str]) -> str:
    rows = [{**r.row, **(r.forms or {})} for r in records]
    pairs = [
        (row[c], r.n[c]) for row, r in zip(rows, records, strict=True) for c in columns if c in row
    ]
    answers = sum(n for _, n in pairs)
    if not answers:
        return "-"
    share = sum(value * n for value, n in pairs) / answers
    low, high = wilson_interval(share, answers)
    return f"{share:.3f} [{low:.3f}, {high:.3f}]"
