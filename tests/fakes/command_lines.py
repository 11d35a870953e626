"""Check command lines of scripts and pages with the real parsers."""

from __future__ import annotations

import re
from functools import cache

import click

from sleep_rl.cli.main import cli as sleep_rl_cli
from sleep_rl.config.loader import load
from sleep_rl.plan.plan import plan

LIVE = "/opt/sleep_rl/cluster/deploy/live.sh"


def check_command(words):
    """Parse a `sleep-rl` or `ray` command line with the real parser, and plan its config, if it has
    one.
    """
    if words[0] == "sleep-rl":
        name, command, rest = sleep_rl_cli.resolve_command(click.Context(sleep_rl_cli), words[1:])
        given = command.make_context(name, list(rest)).params
        config, *overrides = given.get("words") or (
            given.get("config"),
            *given.get("overrides", ()),
        )
        if config and "=" not in config and config != "CONFIG":
            planned(config, *overrides)
        return
    from ray.scripts.scripts import cli

    command = cli
    name = "ray"
    context = None
    rest = words[1:]
    while hasattr(command, "commands"):
        context = command.make_context(name, [rest[0]], parent=context)
        name, command, rest = command.resolve_command(context, rest)
    command.make_context(name, list(rest), parent=context)
    if name == "start" and "--head" not in rest:
        assert not [
            word
            for word in rest
            if word.startswith(("--port", "--include-dashboard", "--dashboard"))
        ], words
    if "--" in rest:
        check_live(rest[rest.index("--") + 1 :])


def check_live(words):
    assert words[0] == LIVE and re.fullmatch(r"\w+", words[2])
    return planned(words[1], f"run.name={words[2]}", *words[3:])


@cache
def planned(config, *overrides):
    """Return the plan of a config. It is made once: many command lines name the same one."""
    return plan(load(config, list(overrides)))
