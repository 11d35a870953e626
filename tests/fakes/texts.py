"""Word tokenizers and small tasks for tests without a model."""

from __future__ import annotations

import hashlib
from typing import ClassVar

from sleep_rl.contracts.records import Day, Document, Question, TrainingText

DAYS = 4


class Words:
    """A tokenizer that splits at spaces; a word's id is the order of its first use."""

    bos_token_id = 1
    eos_token_id = 2
    chat_template = None
    _words: tuple[dict[str, int], dict[int, str]] = ({}, {})  # `ids`, and its inverse

    def __init__(self) -> None:
        self.ids = {"<bos>": 1, "<eos>": 2}

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert add_special_tokens is False
        return {
            "input_ids": [self.ids.setdefault(word, len(self.ids) + 10) for word in text.split()]
        }

    def get_added_vocab(self) -> dict[str, int]:
        return {"<bos>": 1, "<eos>": 2}

    def decode(
        self, ids, skip_special_tokens: bool, clean_up_tokenization_spaces: bool = False
    ) -> str:
        of, words = self._words
        if of is not self.ids or len(words) != len(self.ids):
            words = {i: word for word, i in self.ids.items()}
            self._words = self.ids, words
        return " ".join(words[i] for i in ids if i > 2 or not skip_special_tokens)


class StableWords(Words):
    """A tokenizer whose ids do not depend on earlier texts, as for a real one."""

    # shared by all instances, so that a second one can decode the ids of the first
    ids: ClassVar[dict[str, int]] = {"<bos>": 1, "<eos>": 2}

    def __init__(self) -> None:
        pass

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        for word in text.split():
            self.ids.setdefault(word, 10 + int(hashlib.sha256(word.encode()).hexdigest()[:12], 16))
        return {"input_ids": [self.ids[word] for word in text.split()]}


class Asking:
    """The attributes of a Task that PromptCodec needs."""

    name = "asking"
    opener = "Q :"
    marker = "A :"
    max_new_tokens = 12
    max_answer_tokens = 3


class Natural(Asking):
    """A task in natural language, whose form is chosen by the model."""

    opener = ""
    marker = ""
    max_new_tokens = 200
    max_answer_tokens = 50


class Diary(Asking):
    """A task with one document per day, which has the word of the day."""

    name = "diary"

    def days(self):
        return tuple(
            Day(
                f"day{n}",
                (Document(f"d{n}", f"day {n} was w{n}"),),
                (Question(f"q{n}", f"Q : how was {n} ? A :", f"w{n}", f"d{n}"),),
            )
            for n in range(1, DAYS + 1)
        )

    def known(self):
        """Return one question in each half of evaluate.max_drop: the first decides, the second is
        reported.
        """
        return tuple(Question(name, "Q : old ? A :", "yes") for name in ("k", "k1"))

    def grade(self, question, text):
        return float(text.split() == [question.answer])

    def sft_texts(self, day):
        return (TrainingText("", f"{day.name}"),)
