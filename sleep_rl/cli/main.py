"""The command line: `sleep-rl COMMAND ...`; `sleep-rl --help` lists the commands.

Exit codes: 0 done, 1 the run could not go on, 2 the input cannot work, 130 interrupted. Each
failure is one line on stderr; a traceback means a bug. Everything heavy is imported by the command
that needs it.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress

from sleep_rl.cli.parser import options
from sleep_rl.config.loader import describe, load
from sleep_rl.config.schema import Config
from sleep_rl.config.secrets import masked
from sleep_rl.contracts.errors import InputError, RunError, one_line

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
MOST_CHARACTERS = 1000  # of a failure's line


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    try:
        parser = options(COMMANDS)
        arguments, rest = parser.parse_known_args(argv)
        if rest and (
            not hasattr(arguments, "overrides")
            or any("=" not in part or part[0] == "-" for part in rest)
        ):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        # argparse takes overrides in one piece only, behind the config; people also put them behind
        # options
        if rest:
            arguments.overrides = [*arguments.overrides, *rest]
        return arguments.command(arguments)
    except InputError as error:
        return _fail(error, BAD_INPUT)
    except RunError as error:
        return _fail(error, FAILED)
    except OSError as error:
        if error.errno not in MACHINE_ERRORS:
            raise
        return _fail(f"cannot write {error.filename or 'a file'}: {error.strerror}", FAILED)
    except MemoryError:
        return _fail("this machine's memory does not suffice for what was asked", FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)


def _fail(reason: object, code: int) -> int:
    text = masked(one_line(reason, limit=None))
    # a name of thousands of letters: what matters stands at both ends
    if len(text) > MOST_CHARACTERS:
        text = f"{text[: MOST_CHARACTERS // 2]} ... {text[-MOST_CHARACTERS // 2 :]}"
    print(
        "sleep-rl: " + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text),
        file=sys.stderr,
    )
    return code


def _say(text: object) -> int:
    """Prints a command's answer."""
    return _tell([text])


def _tell(texts: Iterable[object]) -> int:
    """Prints texts as they come. A reader like `head` may close the pipe when it has seen
    enough.
    """
    try:
        for text in texts:
            try:
                print(text, flush=True)
            except UnicodeEncodeError:
                # half a character in a record, or a terminal that knows ASCII only
                print(
                    str(text).encode(sys.stdout.encoding, "replace").decode(sys.stdout.encoding),
                    flush=True,
                )
    except BrokenPipeError:
        # or Python would flush into it again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


def _load(arguments: argparse.Namespace) -> Config:
    return load(arguments.config, arguments.overrides)


def _run(arguments: argparse.Namespace) -> int:
    from sleep_rl.plan.plan import plan

    config = _load(arguments)
    plan(config)  # refuses now what would fail after minutes
    from cluster.launch import run

    return run(config)


def _resume(arguments: argparse.Namespace) -> int:
    from cluster.launch import resume

    return resume(
        arguments.run, arguments.overrides, [name for name in arguments.accept.split(",") if name]
    )


def _submit(arguments: argparse.Namespace) -> int:
    from cluster.jobs import submit

    a, address = arguments, arguments.address
    given = [
        name for name in ("config", "follow", "stop", "resume") if getattr(a, name) is not None
    ]
    # argparse takes the first override for the config
    if a.resume is not None and "=" in (a.config or ""):
        a.overrides.insert(0, a.config)
        given.remove("config")
    if len(given) != 1 or (a.overrides and given[0] in ("follow", "stop")):
        raise InputError(
            "submit: expected a CONFIG or one of --follow JOB, --stop JOB, --resume "
            "RUN, got "
            f"{' and '.join(given + a.overrides) or 'none of them'}"
        )
    if a.follow is not None:
        return submit.follow(a.follow, address)
    if a.stop is not None:
        return submit.stop(a.stop, address)
    if a.resume is not None:
        return submit.resume(a.resume, a.overrides, a.accept, address, a.installed)
    return submit.submit(a.config, a.overrides, address, a.installed)


def _scale(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from cluster.scale import ask

    count = ask(Path(arguments.run), arguments.request)
    return _say(
        f"{arguments.run}: asked for {count} rollout workers; they come and go between two rounds"
    )


def _plan(arguments: argparse.Namespace) -> int:
    from sleep_rl.plan.plan import plan
    from sleep_rl.plan.render import render

    return _say(render(plan(_load(arguments))))


def _evaluate(arguments: argparse.Namespace) -> int:
    config = _load(arguments)
    from cluster.launch import evaluate

    return evaluate(arguments.checkpoint, config)


def _pretrain(arguments: argparse.Namespace) -> int:
    config = _load(arguments)
    from cluster.launch import pretrain

    return pretrain(config)


def _ablate(arguments: argparse.Namespace) -> int:
    from sleep_rl.runs.ablate import ablate

    if arguments.seeds < 1:
        raise InputError(f"--seeds: at least 1, got {arguments.seeds}")
    names = [name for name in arguments.rows.split(",") if name]
    return _say(ablate(arguments.config, arguments.overrides, names, arguments.seeds))


def _drill(arguments: argparse.Namespace) -> int:
    from sleep_rl.plan.plan import plan

    plan(_load(arguments))
    from cluster.drill.drill import drill

    return _say(drill(arguments.config, arguments.overrides))


def _grow(arguments: argparse.Namespace) -> int:
    from sleep_rl.model.grow import grow

    return _say(
        grow(
            arguments.checkpoint,
            arguments.out,
            layers=arguments.layers,
            width=arguments.width,
            intermediate=arguments.intermediate,
            seed=arguments.seed,
        )
    )


def _report(arguments: argparse.Namespace) -> int:
    from sleep_rl.report.page import write_report

    return _say(write_report(arguments.run))


def _dreams(arguments: argparse.Namespace) -> int:
    from sleep_rl.report.dreams import listing

    return _say(
        listing(
            arguments.run,
            task=arguments.task,
            night=arguments.night,
            only=arguments.only,
            sort=arguments.sort,
            most=arguments.most,
        )
    )


def _logs(arguments: argparse.Namespace) -> int:
    from cluster.logs import lines, listing

    if arguments.actor is None:
        if arguments.follow:
            raise InputError("--follow: follows one log, name it with --actor")
        return _say(listing(arguments.run))
    with suppress(KeyboardInterrupt):  # the way to stop following
        _tell(lines(arguments.run, arguments.actor, arguments.lines, arguments.follow))
    return DONE


def _chat(arguments: argparse.Namespace) -> int:
    from sleep_rl.runs.chat import chat

    for answers in chat(
        arguments.checkpoint,
        arguments.prompt,
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
    ):
        _say(answers)
    return DONE


def _export(arguments: argparse.Namespace) -> int:
    from sleep_rl.runs.export import export

    return _say(export(arguments.checkpoint, arguments.out))


def _serve(arguments: argparse.Namespace) -> int:
    from cluster.serve import serve

    return serve(
        arguments.checkpoint, arguments.host, arguments.port, arguments.overrides, arguments.follow
    )


def _summary(arguments: argparse.Namespace) -> int:
    from sleep_rl.report.summary import summarize

    return _say(summarize(arguments.runs))


def _watch(arguments: argparse.Namespace) -> int:
    from sleep_rl.runs.run_dir import held
    from sleep_rl.watch.server import Server

    with Server(arguments.run, arguments.host, arguments.port, held) as server:
        open_to = (
            ""
            if server.loopback
            else "; WARNING: whoever reaches this address can read the run's texts"
        )
        _say(f"{server.url} shows {arguments.run}; ctrl-C ends it{open_to}")
        server.serve_forever()
    return DONE


def _doctor(arguments: argparse.Namespace) -> int:
    from cluster.doctor.doctor import doctor

    return doctor(arguments.config, arguments.overrides, arguments.quick, _say)


def _config(_: argparse.Namespace) -> int:
    return _say(describe())


COMMANDS = {
    "run": _run,
    "resume": _resume,
    "submit": _submit,
    "scale": _scale,
    "plan": _plan,
    "eval": _evaluate,
    "pretrain": _pretrain,
    "ablate": _ablate,
    "drill": _drill,
    "grow": _grow,
    "report": _report,
    "dreams": _dreams,
    "logs": _logs,
    "chat": _chat,
    "export": _export,
    "serve": _serve,
    "summary": _summary,
    "watch": _watch,
    "doctor": _doctor,
    "config": _config,
}
