"""Class-incremental text classification (CLINC150 and datasets like it): every day brings new
classes.

A document is a page of labelled examples, `utterance => label` line by line. Behind such a page, or
behind nothing, the base model writes one more labelled line; after the nights it has to name the
class of utterances it never saw.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from pathlib import Path
from typing import Any

from sleep_rl.contracts.errors import InputError, one_line
from sleep_rl.contracts.records import Day, Document, Question, TrainingText
from sleep_rl.files import parsed
from sleep_rl.tasks.classify.base_model import (
    CONTEXT,
    MARKER,
    OPENER,
    BaseText,
    Examples,
    Recipe,
    model_config,
    train_tokenizer,
)
from sleep_rl.tasks.small_base import Progress, train_base

WHERE = "task.classify"
OUT_OF_SCOPE = "oos"
HUB_CONFIGS = {"clinc/clinc_oos": "plus"}
"""Configuration of a hub dataset that has no default one; `plus` holds the intents and questions of
data_full.json.
"""
KNOWN_QUESTIONS = 315  # at most: three of each of CLINC150's 105 remaining intents


# ---- the dataset


def read_dataset(path: str, where: str = f"{WHERE}.path") -> tuple[Examples, Examples]:
    """The train and test splits of a CLINC150 json, a folder that `datasets` reads, or a hub
    dataset `name[:config]`.

    Out-of-scope examples are dropped, and so is an utterance that came before. Labels are words
    ("book flight" for book_flight): a page can name a class that the base has never seen only in
    tokens whose embeddings it has trained, and one new token per class would not be such. Raises
    InputError with one line for anything that cannot be read.
    """
    try:
        if os.path.exists(path) and not os.path.isdir(path):
            splits = _read_json(path)
        elif os.path.isdir(path) or (
            re.fullmatch(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", path) and not path.endswith(".json")
        ):
            splits = _read_datasets(path)
        else:
            raise FileNotFoundError("no such file")
        train, test = (_by_label(split) for split in splits)
    except Exception as error:
        # what the loaders raise has no common base class; all of it is about this input
        what = one_line(error)
        raise InputError(
            f"{where}: a CLINC150 json, a datasets folder or a hub name, got {path}: {what}"
        ) from error
    return train, test


def _read_json(path: str) -> list[list[tuple[str, str]]]:
    found = parsed(path)
    if not isinstance(found, dict) or not all(
        isinstance(found.get(key), list) for key in ("train", "test")
    ):
        raise ValueError("expected an object with the lists train and test")
    return [found[key] for key in ("train", "test")]


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
        if (
            not isinstance(pair, (list, tuple))
            or len(pair) != 2
            or not all(isinstance(part, str) and part.strip() for part in pair)
        ):
            raise ValueError(
                f"record {i}: expected a pair of utterance and label, got {str(pair)[:60]!r}"
            )
        # one line, without the marker
        utterance = " ".join(pair[0].replace(MARKER.strip(), "->").split())
        if pair[1] != OUT_OF_SCOPE and utterance not in seen:
            seen.add(utterance)
            examples.setdefault(" ".join(pair[1].replace("_", " ").split()), []).append(utterance)
    return examples


def line(utterance: str, label: str) -> str:
    """A labelled example as it stands in documents."""
    return f"{utterance}{MARKER} {label}"


def asked(utterance: str) -> str:
    """What the model continues with a label."""
    return f"{OPENER}{utterance}{MARKER}"


# ---- the task


class Classify:
    """The Task of this file (see contracts.Task). Raises InputError on data or counts that cannot
    be served.

    `order_seed` None keeps the order in which classes first appear in the train split. `base_text`
    names a dataset whose classes the small base is trained on; None takes the classes of `path`
    that no day brings.
    """

    name = "classify"
    opener = OPENER
    marker = MARKER
    max_new_tokens = 48  # the longest training sequence of CLINC150 has 43 tokens
    max_answer_tokens = 12  # the longest label has 8 tokens, and <eos>

    def __init__(
        self,
        path: str,
        days: int = 3,
        classes_per_day: int = 15,
        examples_per_document: int = 6,
        pages_per_example: int = 1,
        order_seed: int | None = None,
        test_per_class: int | None = None,
        base_text: str | None = None,
        recipe: Recipe | None = None,
    ):
        counts = {
            "days": days,
            "classes_per_day": classes_per_day,
            "examples_per_document": examples_per_document,
            "pages_per_example": pages_per_example,
            "test_per_class": test_per_class,
        }
        for key, value in counts.items():
            if value is not None and value < 1:
                raise InputError(f"{WHERE}.{key}: at least 1, got {value}")
        self._train, self._test = read_dataset(path)
        classes = [label for label in self._train if self._test.get(label)]
        if days * classes_per_day > len(classes):
            raise InputError(
                f"{WHERE}: days * classes_per_day is at most {len(classes)}, the "
                "classes with train and "
                f"test examples in {path}, got {days * classes_per_day}"
            )
        if order_seed is not None:
            random.Random(f"classify/{order_seed}").shuffle(classes)
        self._per_document, self._pages, self._per_class = (
            examples_per_document,
            pages_per_example,
            test_per_class,
        )
        self._recipe = recipe or Recipe()
        of_days = [classes[i * classes_per_day : (i + 1) * classes_per_day] for i in range(days)]
        self._days = tuple(self._day(f"day{i + 1}", labels) for i, labels in enumerate(of_days))
        self._labels = dict(zip((day.name for day in self._days), of_days, strict=True))
        if base_text is None:
            rest = classes[days * classes_per_day :]
            self._base, self._base_test = (
                {c: split[c] for c in rest} for split in (self._train, self._test)
            )
        else:
            self._base, self._base_test = read_dataset(base_text, f"{WHERE}.base_text")

    def _day(self, name: str, labels: list[str]) -> Day:
        """Documents that each mix as many classes as they have room for, and the test questions of
        the day.
        """
        rng = random.Random(f"{name}/{labels}")
        pages: list[list[tuple[str, str]]] = []
        for _ in range(self._pages):  # beside other examples each time
            piles = [
                [(u, label) for u in rng.sample(self._train[label], len(self._train[label]))]
                for label in labels
            ]
            order = []
            while piles := [pile for pile in piles if pile]:
                order += [pile.pop() for pile in rng.sample(piles, len(piles))]
            pages += [
                order[i : i + self._per_document] for i in range(0, len(order), self._per_document)
            ]
        documents = tuple(
            Document(f"{name}/{i}", OPENER.join(line(*example) for example in page))
            for i, page in enumerate(pages)
        )
        holding = {
            label: [
                d.id
                for d, page in zip(documents, pages, strict=True)
                if label in {x for _, x in page}
            ]
            for label in labels
        }
        questions = tuple(
            Question(
                f"{name}/{label.replace(' ', '_')}/{i}",
                asked(utterance),
                label,
                holding[label][i % len(holding[label])],
            )
            for label in labels
            for i, utterance in enumerate(self._test[label][: self._per_class])
        )
        return Day(name, documents, questions)

    def days(self) -> tuple[Day, ...]:
        return self._days

    def known(self) -> tuple[Question, ...]:
        """Test questions about the base's own classes, evenly spread over them."""
        per_class = max(1, KNOWN_QUESTIONS // max(1, len(self._base)))
        questions = [
            Question(f"known/{label.replace(' ', '_')}/{i}", asked(utterance), label)
            for label in self._base
            for i, utterance in enumerate(self._base_test.get(label, [])[:per_class])
        ]
        return tuple(questions[:KNOWN_QUESTIONS])

    def grade(self, question: Question, text: str) -> float:
        """1 where the first line is the label, word for word, else 0: "credit limit" is not "credit
        limit change".
        """
        lines = text.strip().split("\n")
        return float(lines[0].split() == question.answer.split())

    def sft_texts(self, day: Day) -> tuple[TrainingText, ...]:
        return _labelled({label: self._train[label] for label in self._labels[day.name]})

    def joint_texts(self) -> tuple[TrainingText, ...]:
        return tuple(text for day in self._days for text in self.sft_texts(day)) + _labelled(
            self._base
        )

    def base_checkpoint(self, cache: str, seed: int, progress: Progress | None) -> str:
        """Trains for about nine minutes on one core; returns at once where the cache already has
        the model.
        """
        if not self._base:
            raise InputError(
                f"{WHERE}.base_text: a dataset to train the base on, as the days "
                "bring all classes, "
                f"got none"
            )
        made_of = json.dumps([self._base, repr(self._recipe), CONTEXT, OPENER, MARKER, seed])
        out = Path(cache) / f"classify-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
        if not out.is_dir():
            texts = [
                text
                for label, utterances in self._base.items()
                for u in utterances
                for text in (u, label)
            ]
            tokenizer = train_tokenizer(texts, self._recipe.vocabulary)
            text = BaseText(self._base, tokenizer, self._recipe, seed)
            config = model_config(self._recipe, tokenizer)
            train_base(
                out,
                tokenizer,
                config,
                text.batches,
                self._recipe.steps,
                self._recipe.lr,
                seed,
                progress,
            )
        return str(out)


def _labelled(examples: Examples) -> tuple[TrainingText, ...]:
    return tuple(
        TrainingText(asked(u), f" {label}")
        for label, utterances in examples.items()
        for u in utterances
    )
