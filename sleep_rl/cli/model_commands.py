"""Commands on models that need neither a config nor a cluster."""

from __future__ import annotations

import click

from sleep_rl.cli.arguments import CHECKPOINT, checkpoint, command
from sleep_rl.cli.output import print_answer
from sleep_rl.config.schema import Config


@command("chat", "Chat with a checkpoint without and with its memory, side by side.", CHECKPOINT)
@checkpoint
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="Prompt; repeatable (default: every line of standard input).",
)
@click.option(
    "--max-tokens", type=int, default=128, metavar="N", help="Longest answer (default 128)."
)
@click.option(
    "--temperature",
    type=float,
    default=0.0,
    metavar="T",
    help="Sampling temperature (default 0: greedy).",
)
@click.option("--seed", type=int, default=0, help="Seed of sampling.")
def chat(
    checkpoint: str, prompts: tuple[str, ...], max_tokens: int, temperature: float, seed: int
) -> None:
    from sleep_rl.runs.chat import chat

    for answers in chat(
        checkpoint, prompts or None, max_tokens=max_tokens, temperature=temperature, seed=seed
    ):
        print_answer(answers)


@command(
    "export",
    "Write a self-contained checkpoint: weights, tokenizer, code, model card.",
    f"{CHECKPOINT} OUT is a new folder.",
)
@checkpoint
@click.argument("out")
def export(checkpoint: str, out: str) -> None:
    from sleep_rl.runs.export import export

    print_answer(export(checkpoint, out))


@command(
    "grow",
    "Write a larger model that computes the same function as a smaller one.",
    "BASE is a folder without memory levels, a packaged model or a hub name, OUT a new folder.",
)
@click.argument("checkpoint", metavar="BASE")
@click.argument("out")
@click.option("--layers", type=int, default=0, metavar="N", help="Additional layers.")
@click.option("--width", type=int, default=1, metavar="M", help="Factor on hidden units and heads.")
@click.option(
    "--intermediate",
    type=int,
    default=0,
    metavar="I",
    help="MLP units in total (default: unchanged).",
)
@click.option("--seed", type=int, default=0, help="Seed of the new parameters.")
def grow(checkpoint: str, out: str, layers: int, width: int, intermediate: int, seed: int) -> None:
    from sleep_rl.model.grow import grow
    from sleep_rl.model.packaged_base import resolve
    from sleep_rl.session.console import Console

    base = resolve(checkpoint, Config().run.cache, Console().phase)
    print_answer(grow(base, out, layers=layers, width=width, intermediate=intermediate, seed=seed))
