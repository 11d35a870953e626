"""`sleep-rl chat`: answers of a model without and with its memory, side by side."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging

from sleep_rl.contracts.errors import InputError
from sleep_rl.model import checkpoints
from sleep_rl.model.memory import LOCKED, memory_levels
from sleep_rl.runs.resolve import resolve_model
from sleep_rl.text.forms import ChatForm
from sleep_rl.text.loading import serving_ends
from sleep_rl.text.tokens import TextTokenizer


def chat(
    checkpoint: str,
    prompts: Sequence[str] | None = None,
    *,
    max_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[str]:
    """Yield, as text to print, both answers to each prompt; without `prompts`, to each line of
    standard input. Prompts are independent of each other.

    Raises InputError for an invalid checkpoint or number, and for a prompt that is too long; one
    that was typed at a terminal is reported instead.
    """
    if max_tokens < 1 or temperature < 0:
        raise InputError(
            f"chat: --max-tokens >= 1 and --temperature >= 0, got {max_tokens} and {temperature:g}"
        )
    comparison = Comparison(checkpoint, max_tokens, temperature, seed)
    typed = prompts is None and sys.stdin.isatty()
    if typed:
        prompts = _typed_lines()
    elif prompts is None:
        prompts = _piped_lines()
    for prompt in prompts:
        if not prompt:
            continue
        try:
            answers = comparison.ask(prompt)
        except InputError as error:
            if not typed:
                raise
            yield str(error)
            continue
        width = shutil.get_terminal_size((100, 24)).columns
        heading = "" if typed else f"> {prompt}"
        yield "\n".join([heading, *side_by_side(comparison.titles, answers, width), ""])


def _piped_lines() -> Iterator[str]:
    for line in sys.stdin.buffer:
        yield line.decode("utf-8", "replace").strip()


def _typed_lines() -> Iterator[str]:
    """Yield lines typed at a terminal, until ctrl-D."""
    # imported for its side effect: line editing and history in `input`
    import readline  # noqa: F401

    print("One question per line; ctrl-D ends.")
    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            print()
            return


@contextmanager
def locked_memory(model: PreTrainedModel) -> Iterator[None]:
    """Lock every slot inside the block, so that the model computes exactly what its base does."""
    levels = list(memory_levels(model).values())
    states = [level.state.clone() for level in levels]
    for level in levels:
        level.set_state(torch.full_like(level.state, LOCKED))
    try:
        yield
    finally:
        for level, state_S in zip(levels, states, strict=True):
            level.set_state(state_S)


class Comparison:
    """A model that answers without and with its memory. Raises InputError for a checkpoint without
    memory.
    """

    def __init__(self, checkpoint: str, max_tokens: int, temperature: float, seed: int):
        logging.disable_progress_bar()
        # suppresses transformers' warnings on generation options
        logging.set_verbosity_error()
        resolved = resolve_model(checkpoint)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        levels = checkpoints.levels_of(resolved.path)
        self.model = checkpoints.load(resolved.path, levels, dtype).to(device)
        self.tokenizer = checkpoints.load_tokenizer(resolved.path, self.model.config.vocab_size)
        self._ends = list(serving_ends(resolved.path, self.tokenizer))
        after = "with its memory" if resolved.night is None else f"after night {resolved.night}"
        self.titles = ("before the nights", after)
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._seed = seed

    def ids(self, prompt: str) -> list[int]:
        """Return the prompt's token ids: in the tokenizer's chat template if it has one, otherwise
        after the bos token, as in a run.
        """
        if self.tokenizer.chat_template:
            form = ChatForm(TextTokenizer(self.tokenizer))
            return list(form.context(None) + form.question(prompt))
        ids = self.tokenizer(prompt)["input_ids"]
        bos = self.tokenizer.bos_token_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def ask(self, prompt: str) -> tuple[str, str]:
        """Return (answer of the base, answer with the memory).

        Raises InputError for a prompt without tokens, and for one that is too long.
        """
        ids = self.ids(prompt)
        limit = self.model.config.max_position_embeddings
        if not 0 < len(ids) < limit:
            raise InputError(f"chat: a prompt of 1 to {limit - 1} tokens is needed, got {len(ids)}")
        with locked_memory(self.model):
            before = self._answer(ids)
        return before, self._answer(ids)

    @torch.no_grad()
    def _answer(self, ids: list[int]) -> str:
        room = self.model.config.max_position_embeddings - len(ids)
        options = GenerationConfig(
            max_new_tokens=min(self._max_tokens, room),
            do_sample=self._temperature > 0,
            temperature=self._temperature or None,
            eos_token_id=self._ends,
            pad_token_id=0,  # one sequence: there is no padding
        )
        ids_1T = torch.tensor([ids], device=self.model.device)
        torch.manual_seed(self._seed)
        output_1T = self.model.generate(
            ids_1T, attention_mask=torch.ones_like(ids_1T), generation_config=options
        )
        return self.tokenizer.decode(output_1T[0, len(ids) :], skip_special_tokens=True).strip()


def side_by_side(titles: tuple[str, str], texts: tuple[str, str], width: int) -> list[str]:
    """Return the lines of a table of two columns, as wide as the texts and at most `width`."""
    room = max((width - 3) // 2, 10)
    columns = [
        [title, "-" * len(title), *_wrapped(text, room)]
        for title, text in zip(titles, texts, strict=True)
    ]
    height = max(map(len, columns))
    left = max(map(len, columns[0]))
    padded = [column + [""] * (height - len(column)) for column in columns]
    return [f"{a:<{left}} | {b}".rstrip() for a, b in zip(*padded, strict=True)]


def _wrapped(text: str, width: int) -> Iterable[str]:
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, width) or [""]]
    return lines or ["(nothing)"]
