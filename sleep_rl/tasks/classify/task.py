"""Task classify: class-incremental text classification (CLINC150 and similar datasets), with new
classes on every day.

A document is a page of labelled examples, one `utterance => label` per line. The base model
generates labelled lines, with or without such a page in context; evaluation asks for the labels of
test utterances.
"""

from __future__ import annotations

import json
import random

from sleep_rl.config.tasks import ClassifyConfig
from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.records import Day, Document, Question, TrainingText
from sleep_rl.tasks.classify.base_model import (
    CONTEXT,
    BaseText,
    Recipe,
    model_config,
    train_tokenizer,
)
from sleep_rl.tasks.classify.dataset import (
    MARKER,
    OPENER,
    Examples,
    label_prompt,
    labelled_line,
    read_dataset,
)
from sleep_rl.tasks.small_base import Progress, cache_folder, train_base

WHERE = "task.classify"
KNOWN_QUESTIONS = 315  # at most: three of each of CLINC150's 105 remaining intents


class Classify:
    """Implements `Task`. Raises InputError on unreadable data or impossible counts.

    `order_seed`: of the order of classes; None: order of first appearance in the train split.
    `base_text`: a dataset whose classes the small base is trained on; None: the classes of `path`
    that no day contains.
    """

    name = "classify"
    opener = OPENER
    marker = MARKER
    max_new_tokens = 48  # the longest training sequence of CLINC150 has 43 tokens
    max_answer_tokens = 12  # the longest label has 8 tokens, and <eos>

    def __init__(
        self,
        path: str,
        days: int = ClassifyConfig.days,
        classes_per_day: int = 15,
        examples_per_document: int = 6,
        pages_per_example: int = 1,
        order_seed: int | None = None,
        test_per_class: int | None = None,
        base_text: str | None = None,
        recipe: Recipe | None = None,
    ):
        counts = {
            "task.days": days,
            f"{WHERE}.classes_per_day": classes_per_day,
            f"{WHERE}.examples_per_document": examples_per_document,
            f"{WHERE}.pages_per_example": pages_per_example,
            f"{WHERE}.test_per_class": test_per_class,
        }
        for key, value in counts.items():
            if value is not None and value < 1:
                raise InputError(f"{key}: at least 1, got {value}")
        self._per_document = examples_per_document
        self._pages_per_example = pages_per_example
        self._test_per_class = test_per_class
        self._recipe = recipe or Recipe()
        self._train, self._test = read_dataset(path)
        classes = [label for label in self._train if self._test.get(label)]
        count = days * classes_per_day
        if count > len(classes):
            raise InputError(
                f"task.days * {WHERE}.classes_per_day is at most {len(classes)}, the classes with "
                f"train and test examples in {path}, got {count}"
            )
        if order_seed is not None:
            random.Random(f"classify/{order_seed}").shuffle(classes)
        self._labels = {
            f"day{i + 1}": classes[i * classes_per_day : (i + 1) * classes_per_day]
            for i in range(days)
        }
        self._days = tuple(self._day(name, labels) for name, labels in self._labels.items())
        if base_text is None:
            self._base = {label: self._train[label] for label in classes[count:]}
            self._base_test = {label: self._test[label] for label in classes[count:]}
        else:
            self._base, self._base_test = read_dataset(base_text, "task.base_text")

    def _day(self, name: str, labels: list[str]) -> Day:
        """Return a day's pages and test questions; each question names a page with its class."""
        pages = self._pages(name, labels)
        documents = [
            Document(f"{name}/{i}", OPENER.join(labelled_line(*example) for example in page))
            for i, page in enumerate(pages)
        ]
        showing: dict[str, list[str]] = {label: [] for label in labels}  # label -> document ids
        for document, page in zip(documents, pages, strict=True):
            for label in {label for _, label in page}:
                showing[label].append(document.id)
        questions = [
            Question(
                f"{name}/{label.replace(' ', '_')}/{i}",
                label_prompt(utterance),
                label,
                showing[label][i % len(showing[label])],
            )
            for label in labels
            for i, utterance in enumerate(self._test[label][: self._test_per_class])
        ]
        return Day(name, tuple(documents), tuple(questions))

    def _pages(self, name: str, labels: list[str]) -> list[list[tuple[str, str]]]:
        """Return pages of (utterance, label), each with as many classes as possible.

        Each example is on `pages_per_example` pages, each time with different other examples.
        """
        rng = random.Random(f"{name}/{labels}")
        size = self._per_document
        pages = []
        for _ in range(self._pages_per_example):
            piles = []
            for label in labels:
                utterances = self._train[label]
                piles.append([(u, label) for u in rng.sample(utterances, len(utterances))])
            order = []
            while piles := [pile for pile in piles if pile]:
                order += [pile.pop() for pile in rng.sample(piles, len(piles))]
            pages += [order[i : i + size] for i in range(0, len(order), size)]
        return pages

    def days(self) -> tuple[Day, ...]:
        return self._days

    def known(self) -> tuple[Question, ...]:
        """Return test questions about the small base's classes, equally many of each."""
        per_class = max(1, KNOWN_QUESTIONS // max(1, len(self._base)))
        questions = [
            Question(f"known/{label.replace(' ', '_')}/{i}", label_prompt(utterance), label)
            for label in self._base
            for i, utterance in enumerate(self._base_test.get(label, [])[:per_class])
        ]
        return tuple(questions[:KNOWN_QUESTIONS])

    def grade(self, question: Question, text: str) -> float:
        """Return 1 if the first line is exactly the label, else 0."""
        first_line = text.strip().split("\n")[0]
        return float(first_line.split() == question.answer.split())

    def sft_texts(self, day: Day) -> tuple[TrainingText, ...]:
        return _labelled({label: self._train[label] for label in self._labels[day.name]})

    def joint_texts(self) -> tuple[TrainingText, ...]:
        of_days = tuple(text for day in self._days for text in self.sft_texts(day))
        return of_days + _labelled(self._base)

    def base_checkpoint(self, cache: str, seed: int, progress: Progress | None) -> str:
        """Return the base's folder in `cache`; train it first (nine minutes on one core) if it is
        not there.
        """
        if not self._base:
            raise InputError(
                "task.base_text: a dataset to train the base on, as the days bring all "
                "classes, got none"
            )
        recipe = self._recipe
        out = cache_folder(
            cache,
            "classify",
            json.dumps([self._base, repr(recipe), CONTEXT, OPENER, MARKER, seed]),
        )
        if not out.is_dir():
            texts = [
                text
                for label, utterances in self._base.items()
                for utterance in utterances
                for text in (utterance, label)
            ]
            tokenizer = train_tokenizer(texts, recipe.vocabulary)
            train_base(
                out,
                tokenizer,
                model_config(recipe, tokenizer),
                BaseText(self._base, tokenizer, recipe, seed).batches,
                recipe.steps,
                recipe.lr,
                seed,
                progress,
            )
        return str(out)


def _labelled(examples: Examples) -> tuple[TrainingText, ...]:
    return tuple(
        TrainingText(label_prompt(utterance), f" {label}")
        for label, utterances in examples.items()
        for utterance in utterances
    )
