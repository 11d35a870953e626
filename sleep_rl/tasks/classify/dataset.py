"""Labelled utterances of CLINC150 and similar datasets, and their text form."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sleep_rl.contracts.errors import InputError, one_line
from sleep_rl.files import parsed, spelled

OPENER = "\n"
MARKER = " =>"
OUT_OF_SCOPE = "oos"
HUB_CONFIGS = {"clinc/clinc_oos": "plus"}
"""Hub dataset -> configuration, if it has no default one; `plus` has the data of data_full.json."""
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")

Examples = dict[str, list[str]]
"""Label -> utterances, both as in prompts, in order of first appearance."""


def read_dataset(path: str, where: str = "task.classify.path") -> tuple[Examples, Examples]:
    """Read the train and test splits of a CLINC150 json, a folder that `datasets` reads, or a hub
    dataset `name[:config]`.

    Out-of-scope examples and repeated utterances are dropped. Labels become words ("book flight"
    for book_flight), so that the label of a new class consists of tokens with trained embeddings.
    Raises InputError, naming the config key `where`, for anything that cannot be read.
    """
    path = spelled(path)
    try:
        if os.path.exists(path) and not os.path.isdir(path):
            splits = _read_json(path)
        elif os.path.isdir(path) or (HUB_NAME.fullmatch(path) and not path.endswith(".json")):
            splits = _read_datasets(path)
        else:
            raise FileNotFoundError("no such file")
        train, test = (_by_label(split) for split in splits)
    except Exception as error:
        # Boundary: the loaders' errors have no common base class; all concern this input.
        raise InputError(
            f"{where}: a CLINC150 json, a datasets folder or a hub name, got {path}: "
            f"{one_line(error)}"
        ) from error
    return train, test


def _read_json(path: str) -> list[list[tuple[str, str]]]:
    content = parsed(path)
    splits = [content.get(key) for key in ("train", "test")] if isinstance(content, dict) else []
    if not splits or not all(isinstance(split, list) for split in splits):
        raise ValueError("expected an object with the lists train and test")
    return splits


def _read_datasets(path: str) -> list[list[tuple[str, str]]]:
    import datasets  # takes seconds to import and is needed for this kind of input only

    if os.path.isdir(path):
        saved = os.path.isfile(Path(path) / "dataset_dict.json")
        loaded = datasets.load_from_disk(path) if saved else datasets.load_dataset(path)
    else:
        name, _, config = path.partition(":")
        loaded = datasets.load_dataset(name, config or HUB_CONFIGS.get(name))
    splits = []
    for key in ("train", "test"):
        if key not in loaded:
            raise ValueError(f"expected the splits train and test, found {', '.join(loaded)}")
        features = loaded[key].features
        labels = [
            name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)
        ]
        if len(labels) != 1 or "text" not in features:
            raise ValueError(
                f"expected a column text and one ClassLabel column, found {', '.join(features)}"
            )
        names = features[labels[0]].names
        splits.append([(row["text"], names[row[labels[0]]]) for row in loaded[key]])
    return splits


def _by_label(pairs: list[Any]) -> Examples:
    examples: Examples = {}
    seen = set()
    for i, pair in enumerate(pairs):
        if not _is_text_pair(pair):
            raise ValueError(
                f"record {i}: expected a pair of utterance and label, got {str(pair)[:60]!r}"
            )
        # one line, without the marker
        utterance = " ".join(pair[0].replace(MARKER.strip(), "->").split())
        if pair[1] != OUT_OF_SCOPE and utterance not in seen:
            seen.add(utterance)
            label = " ".join(pair[1].replace("_", " ").split())
            examples.setdefault(label, []).append(utterance)
    return examples


def _is_text_pair(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return False
    return all(isinstance(part, str) and part.strip() for part in value)


def labelled_line(utterance: str, label: str) -> str:
    """Return a labelled example as it occurs in documents."""
    return f"{utterance}{MARKER} {label}"


def label_prompt(utterance: str) -> str:
    """Return the prompt that the model continues with a label."""
    return f"{OPENER}{utterance}{MARKER}"
