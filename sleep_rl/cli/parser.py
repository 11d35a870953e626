"""Every command of `sleep-rl` with its arguments. Parses only: what a command does stands in
sleep_rl.cli.main.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping

from sleep_rl.contracts.errors import InputError

OVERRIDES = "section.key=value"
Body = Callable[[argparse.Namespace], int]
Command = Callable[[str, str], argparse.ArgumentParser]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        """Like every other bad input: one line, instead of argparse's usage and message."""
        raise InputError(f"{message}; see {self.prog} --help")


def options(bodies: Mapping[str, Body]) -> argparse.ArgumentParser:
    """The parser of every command; `bodies`: name -> what it calls with the parsed arguments."""
    parser = _Parser(
        prog="sleep-rl",
        description="A language model that keeps learning after "
        "deployment: it lives "
        "through days, sleeps, and remembers.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=bodies[name])
        return sub

    def with_config(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("config", metavar="CONFIG", help="a YAML file, e.g. configs/demo.yaml")
        sub.add_argument(
            "overrides",
            metavar=OVERRIDES,
            nargs="*",
            default=[],
            help="keys that win over the file's",
        )

    with_config(command("run", "live through a config's days and nights, and write the report"))
    resume = command(
        "resume", "go on with a run that was cut off, where its newest checkpoint stands"
    )
    resume.add_argument("run", metavar="RUN", help="a run's folder")
    resume.add_argument(
        "overrides", metavar=OVERRIDES, nargs="*", default=[], help="keys to change from here on"
    )
    resume.add_argument(
        "--accept", default="", metavar="A,B", help="keys, or `data`, that may have changed"
    )
    _submit_options(command("submit", "run a config as a job of a Ray cluster, and follow its log"))
    scale = command("scale", "change the number of rollout workers of a run that goes on")
    scale.add_argument("run", metavar="RUN", help="a run's folder")
    scale.add_argument(
        "request", metavar="rollouts=N", help="how many rollout workers it is to have"
    )
    doctor = command(
        "doctor", "check what a run needs of this machine: each line ok, or what to do"
    )
    doctor.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?",
        help="a YAML file that is to run here; it is planned, too",
    )
    doctor.add_argument(
        "overrides", metavar=OVERRIDES, nargs="*", default=[], help="keys that win over the file's"
    )
    doctor.add_argument(
        "--quick",
        action="store_true",
        help="without the tiny life at the end (about half a minute)",
    )
    with_config(
        command("plan", "check a config and print what it asks for, without starting anything")
    )
    evaluate = command("eval", "ask a checkpoint every question of a config's task")
    evaluate.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a folder that a run saved, or any base model"
    )
    with_config(evaluate)
    with_config(command("pretrain", "train the task's own small base model into the cache"))
    grow = command("grow", "write a larger model that computes what a smaller one does")
    grow.add_argument(
        "checkpoint", metavar="BASE", help="a checkpoint without memory levels, or a hub name"
    )
    grow.add_argument("out", metavar="OUT", help="a new folder")
    grow.add_argument("--layers", type=int, default=0, metavar="N", help="layers more")
    grow.add_argument(
        "--width", type=int, default=1, metavar="M", help="times as many hidden units and heads"
    )
    grow.add_argument(
        "--intermediate",
        type=int,
        default=0,
        metavar="I",
        help="MLP units in all (default: as many as now)",
    )
    grow.add_argument("--seed", type=int, default=0, help="of what is new")
    ablate = command(
        "ablate", "live a config's life again with one part switched off at a time: one table"
    )
    ablate.add_argument(
        "--seeds",
        type=int,
        default=3,
        metavar="N",
        help="seeds per row, from run.seed on (default 3)",
    )
    ablate.add_argument(
        "--rows",
        default="",
        metavar="A,B",
        help="rows beside `whole` (default: all that change anything)",
    )
    with_config(ablate)
    with_config(
        command(
            "drill",
            "kill, hang, stall, damage and cut off parts of a config's real runs: one table",
        )
    )
    _seeing(command)
    _with_models(command)
    command("config", "print every key with its default, what it allows and what it means")
    return parser


def _seeing(command: Command) -> None:
    """Commands that show a run."""
    report = command("report", "write the HTML report of a run, also of one that did not end")
    report.add_argument("run", metavar="RUN", help="a run's folder")
    dreams = command("dreams", "list the dreams of a run with their scores, best first")
    dreams.add_argument("run", metavar="RUN", help="a run's folder")
    dreams.add_argument(
        "--task", default="", metavar="TEXT", help="only tasks whose name holds TEXT"
    )
    dreams.add_argument("--night", type=int, metavar="N", help="only dreams of night N")
    dreams.add_argument(
        "--only", default="", metavar="WHAT", help="rewarded, unrewarded, rejected or failed ones"
    )
    dreams.add_argument(
        "--sort",
        default="gain",
        metavar="FIELD",
        help="gain, held_out, importance, tau_before or logprob",
    )
    dreams.add_argument("--most", type=int, default=20, metavar="N", help="how many (default 20)")
    logs = command("logs", "list the workers of a run with their logs, or print one of them")
    logs.add_argument("run", metavar="RUN", help="a run's folder")
    logs.add_argument(
        "--actor", metavar="NAME", help="whose log, e.g. rollout-0 (default: a list of all)"
    )
    logs.add_argument(
        "--lines", type=int, default=50, metavar="N", help="how many of its last lines (default 50)"
    )
    logs.add_argument(
        "--follow",
        action="store_true",
        help="go on with what it prints, until the run ends or Ctrl-C",
    )
    summary = command("summary", "print mean and range over runs that differ in their seed")
    summary.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs")
    watch = command(
        "watch", "serve a local page that shows a run while it goes on, or one that has ended"
    )
    watch.add_argument("run", metavar="RUN", help="a run's folder")
    watch.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at (default 127.0.0.1: this machine only)",
    )
    watch.add_argument(
        "--port",
        type=int,
        default=8420,
        help="port to listen at (default 8420); 0: any that is free",
    )


def _with_models(command: Command) -> None:
    """Commands for what comes out of a run."""
    chat = command("chat", "ask a checkpoint before and after its nights, side by side")
    chat.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a run, a memory folder or a full checkpoint"
    )
    chat.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="ask this and end; may "
        "be repeated (default: "
        "every "
        "line of the standard "
        "input, each on its own)",
    )
    chat.add_argument(
        "--max-tokens", type=int, default=128, metavar="N", help="of an answer (default 128)"
    )
    chat.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="default 0: the most likely answer",
    )
    chat.add_argument(
        "--seed", type=int, default=0, help="of sampling, where the temperature is above 0"
    )
    export = command(
        "export", "write a checkpoint that stands alone: weights, tokenizer, code, model card"
    )
    export.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a run, a memory folder or a full checkpoint"
    )
    export.add_argument("out", metavar="OUT", help="a new folder")
    serve = command(
        "serve", "answer as an OpenAI-compatible server, with the newest night of a run"
    )
    serve.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a run, a memory folder or a full checkpoint"
    )
    serve.add_argument(
        "overrides",
        metavar="OPTION=VALUE",
        nargs="*",
        default=[],
        help="vLLM's own, e.g. max_model_len=4096",
    )
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine only)"
    )
    serve.add_argument("--port", type=int, default=8000, help="default 8000; 0 takes a free one")
    serve.add_argument(
        "--follow",
        action="store_true",
        help="take every night that the run adds, without a restart",
    )


def _submit_options(submit: argparse.ArgumentParser) -> None:
    submit.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?",
        help="a YAML file; what it names by path, nodes must see",
    )
    submit.add_argument(
        "overrides", metavar=OVERRIDES, nargs="*", default=[], help="keys that win over the file's"
    )
    submit.add_argument(
        "--address",
        metavar="URL",
        default=os.environ.get("RAY_API_SERVER_ADDRESS"),
        help="the cluster's job server, e.g. http://HEAD:8265 (default: RAY_API_SERVER_ADDRESS)",
    )
    submit.add_argument(
        "--follow", metavar="JOB", help="show the log of a submitted job instead, to its end"
    )
    submit.add_argument(
        "--stop", metavar="JOB", help="stop a submitted job instead; its run can be resumed"
    )
    submit.add_argument("--resume", metavar="RUN", help="submit `sleep-rl resume RUN` instead")
    submit.add_argument(
        "--accept",
        default="",
        metavar="A,B",
        help="with --resume: keys, or `data`, that may have changed",
    )
    submit.add_argument(
        "--installed",
        action="store_true",
        help="send no code: the cluster's nodes have sleep-rl installed",
    )
