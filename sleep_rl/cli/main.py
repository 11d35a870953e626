"""The command line: `sleep-rl COMMAND ...`; `sleep-rl --help` lists the commands.

Exit codes: 0 success, 1 a failed run, 2 invalid input, 130 interrupted. Each failure is one line on
stderr; a traceback is a bug.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from contextlib import suppress

import click

from sleep_rl.cli import model_commands, report_commands
from sleep_rl.cli.arguments import (
    CHECKPOINT,
    CONFIG,
    RUN,
    CommandGroup,
    accept_option,
    assignments,
    checkpoint,
    command,
    config_and_overrides,
    names,
    run_folder,
    usage_line,
)
from sleep_rl.cli.output import print_answer, print_lines
from sleep_rl.config.loader import describe, load
from sleep_rl.config.secrets import masked
from sleep_rl.contracts.errors import InputError, RunError

DONE = 0
FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130
MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
MOST_CHARACTERS = 1000  # of a failure's line


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with cli.make_context("sleep-rl", arguments) as context:
            return cli.invoke(context) or DONE
    except click.exceptions.Exit as end:  # --help
        return end.exit_code
    except click.UsageError as error:
        failure = (usage_line(error), BAD_INPUT)
    except InputError as error:
        failure = (str(error), BAD_INPUT)
    except RunError as error:
        failure = (str(error), FAILED)
    except OSError as error:
        if error.errno not in MACHINE_ERRORS:
            raise
        failure = (f"cannot write {error.filename or 'a file'}: {error.strerror}", FAILED)
    except MemoryError:
        failure = ("out of memory", FAILED)
    except KeyboardInterrupt:
        failure = ("interrupted", INTERRUPTED)
    return _fail(*failure)


def _fail(reason: str, code: int) -> int:
    """Print why a command failed, as one line without secrets, and return its exit code."""
    text = masked(" ".join(reason.split()))
    if len(text) > MOST_CHARACTERS:  # e.g. a name of thousands of letters
        text = f"{text[: MOST_CHARACTERS // 2]} ... {text[-MOST_CHARACTERS // 2 :]}"
    printable = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    print(f"sleep-rl: {printable}", file=sys.stderr)
    return code


@command("run", "Run a config: all its days and nights, then the report.", CONFIG)
@config_and_overrides
def run(config: str, overrides: list[str]) -> int:
    from sleep_rl.plan.plan import plan

    loaded = load(config, overrides)
    plan(loaded)  # refuses at once a config that would fail after minutes
    from cluster.launch import run

    return run(loaded)


@command("resume", "Continue an interrupted run from its newest checkpoint.", RUN)
@run_folder
@assignments()
@accept_option("Keys, or `data`, that may have changed.")
def resume(run: str, overrides: list[str], accept: str) -> int:
    from cluster.launch import resume

    return resume(run, overrides, names(accept))


@command(
    "forget",
    "Run a night of a run on documents in which one of them is unlearned.",
    f"{RUN} DOCUMENT is the name of its file in the folder of documents.",
)
@run_folder
@click.argument("document")
def forget(run: str, document: str) -> int:
    from cluster.documents_run import forget

    return forget(run, document)


@command(
    "submit",
    "Run a config as a job of a Ray cluster, and follow its log.",
    "CONFIG is a YAML file; the paths in it must exist on the cluster's nodes.",
)
@click.argument("words", nargs=-1, metavar="[CONFIG] [section.key=value]...")
@click.option(
    "--address",
    metavar="URL",
    envvar="RAY_API_SERVER_ADDRESS",
    help="The cluster's job server, e.g. http://HEAD:8265 (default: RAY_API_SERVER_ADDRESS).",
)
@click.option("--follow", metavar="JOB", help="Show the log of a submitted job instead.")
@click.option("--stop", metavar="JOB", help="Stop a submitted job instead; its run can be resumed.")
@click.option("--resume", metavar="RUN", help="Submit `sleep-rl resume RUN` instead.")
@accept_option("With --resume: keys, or `data`, that may have changed.")
@click.option(
    "--installed",
    is_flag=True,
    help="Send no code: the cluster's nodes have sleep-rl installed.",
)
def submit(
    words: tuple[str, ...],
    address: str | None,
    follow: str | None,
    stop: str | None,
    resume: str | None,
    accept: str,
    installed: bool,
) -> int:
    from cluster.jobs import submit

    config, overrides = _split_config(words)
    actions = {"config": config, "follow": follow, "stop": stop, "resume": resume}
    given = [name for name, value in actions.items() if value is not None]
    if len(given) != 1 or (overrides and given[0] in ("follow", "stop")):
        raise InputError(
            "submit: expected a CONFIG or one of --follow JOB, --stop JOB, --resume RUN, got "
            f"{' and '.join(given + overrides) or 'none of them'}"
        )
    if follow is not None:
        return submit.follow(follow, address)
    if stop is not None:
        return submit.stop(stop, address)
    if resume is not None:
        return submit.resume(resume, overrides, accept, address, installed)
    return submit.submit(config, overrides, address, installed)


def _split_config(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split into (config or None, overrides)."""
    if words and "=" not in words[0]:
        return words[0], list(words[1:])
    return None, list(words)


@command("scale", "Change the number of rollout workers of a running run.", RUN)
@run_folder
@click.argument("request", metavar="rollouts=N")
def scale(run: str, request: str) -> None:
    from pathlib import Path

    from cluster import scale as scaling

    count = scaling.request(Path(run), request)
    print_answer(f"{run}: {count} rollout workers requested; they join or leave between two rounds")


@command(
    "doctor",
    "Check this machine for a run: each line is ok, or says what to do.",
    "CONFIG is a YAML file to check and plan as well.",
)
@click.argument("config", required=False)
@assignments()
@click.option("--quick", is_flag=True, help="Omit the tiny run at the end (half a minute).")
def doctor(config: str | None, overrides: list[str], quick: bool) -> int:
    from cluster.doctor.doctor import doctor

    return doctor(config, overrides, quick, print_answer)


@command("plan", "Check a config and print its workers, memory and steps; starts nothing.", CONFIG)
@config_and_overrides
def plan(config: str, overrides: list[str]) -> None:
    from sleep_rl.plan.plan import plan
    from sleep_rl.plan.render import render

    print_answer(render(plan(load(config, overrides))))


@command("eval", "Evaluate a checkpoint on all questions of a config.", f"{CHECKPOINT} {CONFIG}")
@checkpoint
@config_and_overrides
def evaluate(checkpoint: str, config: str, overrides: list[str]) -> int:
    loaded = load(config, overrides)
    from cluster.launch import evaluate

    return evaluate(checkpoint, loaded)


@command("pretrain", "Train the task's small base model into the cache.", CONFIG)
@config_and_overrides
def pretrain(config: str, overrides: list[str]) -> int:
    loaded = load(config, overrides)
    from cluster.launch import pretrain

    return pretrain(loaded)


@command("ablate", "Run a config with one part switched off at a time; print one table.", CONFIG)
@click.option(
    "--seeds",
    type=int,
    default=3,
    metavar="N",
    help="Seeds per row, counted from run.seed (default 3).",
)
@click.option(
    "--rows",
    default="",
    metavar="A,B",
    help="Rows besides `whole` (default: all that change the config).",
)
@config_and_overrides
def ablate(seeds: int, rows: str, config: str, overrides: list[str]) -> None:
    from sleep_rl.runs.ablate import ablate

    if seeds < 1:
        raise InputError(f"--seeds: at least 1, got {seeds}")
    print_answer(ablate(config, overrides, names(rows), seeds))


@command("drill", "Inject faults into real runs of a config; print one table of results.", CONFIG)
@config_and_overrides
def drill(config: str, overrides: list[str]) -> None:
    from sleep_rl.plan.plan import plan

    plan(load(config, overrides))
    from cluster.drill.drill import drill

    print_answer(drill(config, overrides))


@command("logs", "List the workers of a run with their logs, or print one of them.", RUN)
@run_folder
@click.option("--actor", metavar="NAME", help="Worker, e.g. rollout-0 (default: list all).")
@click.option(
    "--lines", "count", type=int, default=50, metavar="N", help="Number of lines (default 50)."
)
@click.option("--follow", is_flag=True, help="Keep printing until the run ends or ctrl-C.")
def logs(run: str, actor: str | None, count: int, follow: bool) -> None:
    from cluster.logs import lines, listing

    if actor is not None:
        with suppress(KeyboardInterrupt):  # the way to stop following
            print_lines(lines(run, actor, count, follow))
        return
    if follow:
        raise InputError("--follow: follows one log, name it with --actor")
    print_answer(listing(run))


@command("serve", "Serve a model, or the newest night of a run, by the OpenAI API.", CHECKPOINT)
@checkpoint
@assignments("OPTION=VALUE")
@click.option(
    "--host", default="127.0.0.1", help="Address to listen on (default: this machine only)."
)
@click.option("--port", type=int, default=8000, help="Default 8000; 0: any free one.")
@click.option("--follow", is_flag=True, help="Load each new night of the run without a restart.")
def serve(checkpoint: str, overrides: list[str], host: str, port: int, follow: bool) -> int:
    from cluster.serve import serve

    return serve(checkpoint, host, port, overrides, follow)


@command("config", "Print every key with its default, meaning and allowed values.")
def config() -> None:
    print_answer(describe())


cli = CommandGroup(
    "sleep-rl",
    help="Continual learning of a language model by Knowledge Seeding: each night consolidates the "
    "documents of a day into its memory.",
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    commands=[
        run,
        resume,
        forget,
        submit,
        scale,
        doctor,
        plan,
        evaluate,
        pretrain,
        model_commands.grow,
        ablate,
        drill,
        report_commands.report,
        report_commands.dreams,
        logs,
        report_commands.summary,
        report_commands.watch,
        model_commands.chat,
        model_commands.export,
        serve,
        config,
    ],
)
