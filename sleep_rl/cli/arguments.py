"""Arguments and options that several commands share.

The body of a command imports the modules that it needs, so that `--help` stays fast. It returns an
exit code, or None for success.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

OVERRIDES = "section.key=value"
CONFIG = f"CONFIG is a YAML file, e.g. configs/demo.yaml; {OVERRIDES} wins over the file."
RUN = "RUN is the folder of a run."
CHECKPOINT = "CHECKPOINT is a run, a memory folder, a full checkpoint or a hub name."

Decorator = Callable[[Any], Any]


class CommandGroup(click.Group):
    """A group whose help lists the commands in the order of definition."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in order."""
        return list(self.commands)


def command(name: str, text: str, arguments: str = "") -> Decorator:
    """Declare a command with its one-line description `text`; `arguments` describes arguments."""
    return click.command(name, help=f"{text}\n\n{arguments}", short_help=text)


def usage_line(error: click.UsageError) -> str:
    """Return click's message about a command line with a pointer to the command's help."""
    path = error.ctx.command_path if error.ctx else "sleep-rl"
    return f"{error.format_message().rstrip('.')}; see {path} --help"


def assignments(metavar: str = OVERRIDES) -> Decorator:
    """Declare the argument `overrides`, a list of any number of assignments."""

    def check(_: click.Context, __: click.Parameter, words: Sequence[str]) -> list[str]:
        for word in words:
            if "=" not in word:
                raise click.UsageError(f"expected {metavar}, got {word}")
        return list(words)

    return click.argument("overrides", nargs=-1, metavar=f"[{metavar}]...", callback=check)


def config_and_overrides(function: Any) -> Any:
    """Declare the arguments `config` (a YAML file) and `overrides`."""
    return click.argument("config")(assignments()(function))


def accept_option(text: str) -> Decorator:
    """Declare the option `--accept`."""
    return click.option("--accept", default="", metavar="A,B", help=text)


def names(text: str) -> list[str]:
    """Split names at commas."""
    return [name for name in text.split(",") if name]


run_folder = click.argument("run")
checkpoint = click.argument("checkpoint")
