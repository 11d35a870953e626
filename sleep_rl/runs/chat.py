"""`sleep-rl chat`: the same question to a model before and after its nights, side by side."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence

import torch
from transformers import GenerationConfig
from transformers.utils import logging

from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.records import STUDENT, TEACHER
from sleep_rl.model import checkpoints
from sleep_rl.model.memory import LOCKED, Patch, memory_levels, view_of
from sleep_rl.runs.resolve import find

BEFORE, AFTER = STUDENT, TEACHER  # views of one model: without its memory, and as it is stored


def chat(
    checkpoint: str,
    prompts: Sequence[str] | None = None,
    *,
    max_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[str]:
    """Both answers to each prompt, as text to print, or to each line of the standard input where
    there are no prompts. Every prompt stands for itself. Raises InputError for a checkpoint or
    numbers that cannot work, and for a prompt that does not fit, unless it was typed: then the next
    one may.
    """
    if max_tokens < 1 or temperature < 0:
        raise InputError(
            "chat: --max-tokens from 1 and --temperature from 0 on, got "
            f"{max_tokens} and {temperature:g}"
        )
    pair = Pair(checkpoint, max_tokens, temperature, seed)
    asking = prompts is None and sys.stdin.isatty()
    for prompt in _typed() if asking else prompts if prompts is not None else _piped():
        if not prompt:
            continue
        try:
            answers = pair.ask(prompt)
        except InputError as error:
            if not asking:
                raise
            yield str(error)
            continue
        width = shutil.get_terminal_size((100, 24)).columns
        yield "\n".join(
            ["" if asking else f"> {prompt}", *side_by_side(pair.titles, answers, width), ""]
        )


def _piped() -> Iterator[str]:
    for line in sys.stdin.buffer:
        yield line.decode("utf-8", "replace").strip()


def _typed() -> Iterator[str]:
    """Lines from a terminal until its end (ctrl-D)."""

    print("One question per line; ctrl-D ends.")
    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            print()
            return


class Pair:
    """One model, asked without and with its memory."""

    def __init__(self, checkpoint: str, max_tokens: int, temperature: float, seed: int):
        logging.disable_progress_bar()
        # transformers' hints on options of generation that are none of the user's
        logging.set_verbosity_error()
        found = find(checkpoint)
        levels = checkpoints.levels_of(found.path)
        cuda = torch.cuda.is_available()
        model = checkpoints.load(found.path, levels, torch.bfloat16 if cuda else torch.float32).to(
            "cuda" if cuda else "cpu"
        )
        for level in memory_levels(model).values():
            level.set_patch(Patch(torch.full_like(level.state, LOCKED), {}))
        self.model, self.tokenizer = (
            model,
            checkpoints.load_tokenizer(found.path, model.config.vocab_size),
        )
        after = "with its memory" if found.night is None else f"after night {found.night}"
        self.titles = ("before the nights", after)
        self._max_tokens, self._temperature, self._seed = max_tokens, temperature, seed

    def ids(self, prompt: str) -> list[int]:
        """What the model reads: the prompt in the tokenizer's chat template, else the text behind
        the bos token, as every text of a run stands.
        """
        tokenizer = self.tokenizer
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
            )
            return tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = tokenizer(prompt)["input_ids"]
        bos = tokenizer.bos_token_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def ask(self, prompt: str) -> tuple[str, str]:
        """(answer before, answer after). Raises InputError for a prompt without tokens, or with
        more than fit.
        """
        ids, most = self.ids(prompt), self.model.config.max_position_embeddings
        if not 0 < len(ids) < most:
            raise InputError(f"chat: a prompt of 1 to {most - 1} tokens is needed, got {len(ids)}")
        return self._answer(ids, BEFORE, most), self._answer(ids, AFTER, most)

    @torch.no_grad()
    def _answer(self, ids: list[int], view: str, most: int) -> str:
        drawn = {"temperature": self._temperature} if self._temperature else {}
        own, tokenizer = self.model.generation_config, self.tokenizer
        ends = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
        how = GenerationConfig(
            max_new_tokens=min(self._max_tokens, most - len(ids)),
            do_sample=bool(drawn),
            # one sequence: nothing is padded
            eos_token_id=ends,
            pad_token_id=0,
            **drawn,
        )
        ids_1T = torch.tensor([ids], device=self.model.device)
        torch.manual_seed(self._seed)
        with view_of(self.model, view):
            out_1T = self.model.generate(
                ids_1T, attention_mask=torch.ones_like(ids_1T), generation_config=how
            )
        return tokenizer.decode(out_1T[0, len(ids) :], skip_special_tokens=True).strip()


def side_by_side(titles: tuple[str, str], texts: tuple[str, str], width: int) -> list[str]:
    """Lines of a table with two columns, each as wide as its text asks for, `width` in all at
    most.
    """
    room = max((width - 3) // 2, 10)
    columns = [
        [title, "-" * len(title), *_wrapped(text, room)]
        for title, text in zip(titles, texts, strict=True)
    ]
    height, left = max(map(len, columns)), max(map(len, columns[0]))
    padded = [column + [""] * (height - len(column)) for column in columns]
    return [f"{a:<{left}} | {b}".rstrip() for a, b in zip(*padded, strict=True)]


def _wrapped(text: str, width: int) -> Iterable[str]:
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, width) or [""]]
    return lines or ["(nothing)"]
