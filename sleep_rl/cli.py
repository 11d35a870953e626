"""The command line: `sleep-rl COMMAND ...`; `sleep-rl --help` lists the commands.

Exit codes: 0 done, 1 the run could not go on, 2 the input cannot work, 130 interrupted. Each failure is one line on
stderr; a traceback means a bug. Everything heavy is imported by the command that needs it.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from sleep_rl.config import Config
from sleep_rl.contracts import InputError, RunError
from sleep_rl.loading import describe, load
from sleep_rl.secret import masked

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
MOST_CHARACTERS = 1000  # of a failure's line
OVERRIDES = "section.key=value"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    try:
        parser = _parser()
        arguments, rest = parser.parse_known_args(argv)
        if rest and (not hasattr(arguments, "overrides") or any("=" not in part or part[0] == "-" for part in rest)):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        if rest:  # argparse takes overrides in one piece only, behind the config; people also put them behind options
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
    text = masked(" ".join(str(reason).split()))
    if len(text) > MOST_CHARACTERS:  # a name of thousands of letters: what matters stands at both ends
        text = f"{text[:MOST_CHARACTERS // 2]} ... {text[-MOST_CHARACTERS // 2:]}"
    print("sleep-rl: " + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        """Like every other bad input: one line, instead of argparse's usage and message."""
        raise InputError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sleep-rl", description="A language model that keeps learning after deployment: it lives "
                                                  "through days, sleeps, and remembers.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, body: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=body)
        return sub

    def with_config(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("config", metavar="CONFIG", help="a YAML file, e.g. configs/demo.yaml")
        sub.add_argument("overrides", metavar=OVERRIDES, nargs="*", default=[],
                         help="keys that win over the file's")

    with_config(command("run", _run, "live through a config's days and nights, and write the report"))
    resume = command("resume", _resume, "go on with a run that was cut off, where its newest checkpoint stands")
    resume.add_argument("run", metavar="RUN", help="a run's folder")
    resume.add_argument("overrides", metavar=OVERRIDES, nargs="*", default=[], help="keys to change from here on")
    resume.add_argument("--accept", default="", metavar="A,B", help="keys, or `data`, that may have changed")
    _submit_options(command("submit", _submit, "run a config as a job of a Ray cluster, and follow its log"))
    scale = command("scale", _scale, "change the number of rollout workers of a run that goes on")
    scale.add_argument("run", metavar="RUN", help="a run's folder")
    scale.add_argument("request", metavar="rollouts=N", help="how many rollout workers it is to have")
    with_config(command("plan", _plan, "check a config and print what it asks for, without starting anything"))
    evaluate = command("eval", _evaluate, "ask a checkpoint every question of a config's task")
    evaluate.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder that a run saved, or any base model")
    with_config(evaluate)
    with_config(command("pretrain", _pretrain, "train the task's own small base model into the cache"))
    grow = command("grow", _grow, "write a larger model that computes what a smaller one does")
    grow.add_argument("checkpoint", metavar="BASE", help="a checkpoint without memory levels, or a hub name")
    grow.add_argument("out", metavar="OUT", help="a new folder")
    grow.add_argument("--layers", type=int, default=0, metavar="N", help="layers more")
    grow.add_argument("--width", type=int, default=1, metavar="M", help="times as many hidden units and heads")
    grow.add_argument("--intermediate", type=int, default=0, metavar="I", help="MLP units in all (default: as many as now)")
    grow.add_argument("--seed", type=int, default=0, help="of what is new")
    ablate = command("ablate", _ablate, "live a config's life again with one part switched off at a time: one table")
    ablate.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds per row, from run.seed on (default 3)")
    ablate.add_argument("--rows", default="", metavar="A,B", help="rows beside `whole` (default: all that change anything)")
    with_config(ablate)
    with_config(command("drill", _drill, "kill, hang, stall, damage and cut off parts of a config's real runs: one table"))
    report = command("report", _report, "write the HTML report of a run, also of one that did not end")
    report.add_argument("run", metavar="RUN", help="a run's folder")
    dreams = command("dreams", _dreams, "list the dreams of a run with their scores, best first")
    dreams.add_argument("run", metavar="RUN", help="a run's folder")
    dreams.add_argument("--task", default="", metavar="TEXT", help="only tasks whose name holds TEXT")
    dreams.add_argument("--night", type=int, metavar="N", help="only dreams of night N")
    dreams.add_argument("--only", default="", metavar="WHAT", help="rewarded, unrewarded, rejected or failed ones")
    dreams.add_argument("--sort", default="gain", metavar="FIELD", help="gain, held_out, importance, tau_before or logprob")
    dreams.add_argument("--most", type=int, default=20, metavar="N", help="how many (default 20)")
    logs = command("logs", _logs, "list the workers of a run with their logs, or print one of them")
    logs.add_argument("run", metavar="RUN", help="a run's folder")
    logs.add_argument("--actor", metavar="NAME", help="whose log, e.g. rollout-0 (default: a list of all)")
    logs.add_argument("--lines", type=int, default=50, metavar="N", help="how many of its last lines (default 50)")
    logs.add_argument("--follow", action="store_true", help="go on with what it prints, until the run ends or Ctrl-C")
    _with_models(command)
    summary = command("summary", _summary, "print mean and range over runs that differ in their seed")
    summary.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs")
    _add_watch_and_doctor(command)
    command("config", _config, "print every key with its default, what it allows and what it means")
    return parser


def _add_watch_and_doctor(command: Callable[..., argparse.ArgumentParser]) -> None:
    watch = command("watch", _watch, "serve a local page that shows a run while it goes on, or one that has ended")
    watch.add_argument("run", metavar="RUN", help="a run's folder")
    watch.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine only)")
    watch.add_argument("--port", type=int, default=8420, help="port to listen at (default 8420); 0: any that is free")
    doctor = command("doctor", _doctor, "check what a run needs of this machine: each line ok, or what to do")
    doctor.add_argument("config", metavar="CONFIG", nargs="?", help="a YAML file that is to run here; it is planned, too")
    doctor.add_argument("overrides", metavar=OVERRIDES, nargs="*", default=[], help="keys that win over the file's")
    doctor.add_argument("--quick", action="store_true", help="without the tiny life at the end (about half a minute)")


def _with_models(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Commands for what comes out of a run."""
    chat = command("chat", _chat, "ask a checkpoint before and after its nights, side by side")
    chat.add_argument("checkpoint", metavar="CHECKPOINT", help="a run, a memory folder or a full checkpoint")
    chat.add_argument("--prompt", action="append", metavar="TEXT", help="ask this and end; may be repeated (default: every "
                                                                        "line of the standard input, each on its own)")
    chat.add_argument("--max-tokens", type=int, default=128, metavar="N", help="of an answer (default 128)")
    chat.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default 0: the most likely answer")
    chat.add_argument("--seed", type=int, default=0, help="of sampling, where the temperature is above 0")
    export = command("export", _export, "write a checkpoint that stands alone: weights, tokenizer, code, model card")
    export.add_argument("checkpoint", metavar="CHECKPOINT", help="a run, a memory folder or a full checkpoint")
    export.add_argument("out", metavar="OUT", help="a new folder")
    serve = command("serve", _serve, "answer as an OpenAI-compatible server, with the newest night of a run")
    serve.add_argument("checkpoint", metavar="CHECKPOINT", help="a run, a memory folder or a full checkpoint")
    serve.add_argument("overrides", metavar="OPTION=VALUE", nargs="*", default=[],
                       help="vLLM's own, e.g. max_model_len=4096")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    serve.add_argument("--port", type=int, default=8000, help="default 8000; 0 takes a free one")
    serve.add_argument("--follow", action="store_true", help="take every night that the run adds, without a restart")


def _submit_options(submit: argparse.ArgumentParser) -> None:
    submit.add_argument("config", metavar="CONFIG", nargs="?", help="a YAML file; what it names by path, nodes must see")
    submit.add_argument("overrides", metavar=OVERRIDES, nargs="*", default=[], help="keys that win over the file's")
    submit.add_argument("--address", metavar="URL", default=os.environ.get("RAY_API_SERVER_ADDRESS"),
                        help="the cluster's job server, e.g. http://HEAD:8265 (default: RAY_API_SERVER_ADDRESS)")
    submit.add_argument("--follow", metavar="JOB", help="show the log of a submitted job instead, to its end")
    submit.add_argument("--stop", metavar="JOB", help="stop a submitted job instead; its run can be resumed")
    submit.add_argument("--resume", metavar="RUN", help="submit `sleep-rl resume RUN` instead")
    submit.add_argument("--accept", default="", metavar="A,B", help="with --resume: keys, or `data`, that may have changed")
    submit.add_argument("--installed", action="store_true", help="send no code: the cluster's nodes have sleep-rl installed")


def _say(text: object) -> int:
    """Prints a command's answer."""
    return _tell([text])


def _tell(texts: Iterable[object]) -> int:
    """Prints texts as they come. A reader like `head` may close the pipe when it has seen enough."""
    try:
        for text in texts:
            try:
                print(text, flush=True)
            except UnicodeEncodeError:  # half a character in a record, or a terminal that knows ASCII only
                print(str(text).encode(sys.stdout.encoding, "replace").decode(sys.stdout.encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would flush into it again at exit
    return DONE


def _load(arguments: argparse.Namespace) -> Config:
    return load(arguments.config, arguments.overrides)


def _run(arguments: argparse.Namespace) -> int:
    from sleep_rl.plan import plan

    config = _load(arguments)
    plan(config)  # refuses now what would fail after minutes
    from cluster.launch import run

    return run(config)


def _resume(arguments: argparse.Namespace) -> int:
    from cluster.launch import resume

    return resume(arguments.run, arguments.overrides, [name for name in arguments.accept.split(",") if name])


def _submit(arguments: argparse.Namespace) -> int:
    from cluster import submit

    a, address = arguments, arguments.address
    given = [name for name in ("config", "follow", "stop", "resume") if getattr(a, name) is not None]
    if a.resume is not None and "=" in (a.config or ""):  # argparse takes the first override for the config
        a.overrides.insert(0, a.config)
        given.remove("config")
    if len(given) != 1 or a.overrides and given[0] in ("follow", "stop"):
        raise InputError("submit: expected a CONFIG or one of --follow JOB, --stop JOB, --resume RUN, got "
                         f"{' and '.join(given + a.overrides) or 'none of them'}")
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
    return _say(f"{arguments.run}: asked for {count} rollout workers; they come and go between two rounds")


def _plan(arguments: argparse.Namespace) -> int:
    from sleep_rl.plan import plan
    from sleep_rl.plan_words import render

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
    from sleep_rl.ablate import ablate

    if arguments.seeds < 1:
        raise InputError(f"--seeds: at least 1, got {arguments.seeds}")
    names = [name for name in arguments.rows.split(",") if name]
    return _say(ablate(arguments.config, arguments.overrides, names, arguments.seeds))


def _drill(arguments: argparse.Namespace) -> int:
    from sleep_rl.plan import plan

    plan(_load(arguments))
    from cluster.drill import drill

    return _say(drill(arguments.config, arguments.overrides))


def _grow(arguments: argparse.Namespace) -> int:
    from sleep_rl.grow import grow

    return _say(grow(arguments.checkpoint, arguments.out, layers=arguments.layers, width=arguments.width,
                     intermediate=arguments.intermediate, seed=arguments.seed))


def _report(arguments: argparse.Namespace) -> int:
    from sleep_rl.report import write_report

    return _say(write_report(arguments.run))


def _dreams(arguments: argparse.Namespace) -> int:
    from sleep_rl.dream_pages import listing

    return _say(listing(arguments.run, task=arguments.task, night=arguments.night, only=arguments.only,
                        sort=arguments.sort, most=arguments.most))


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
    from sleep_rl.chat import chat

    for answers in chat(arguments.checkpoint, arguments.prompt, max_tokens=arguments.max_tokens,
                        temperature=arguments.temperature, seed=arguments.seed):
        _say(answers)
    return DONE


def _export(arguments: argparse.Namespace) -> int:
    from sleep_rl.export import export

    return _say(export(arguments.checkpoint, arguments.out))


def _serve(arguments: argparse.Namespace) -> int:
    from cluster.serve import serve

    return serve(arguments.checkpoint, arguments.host, arguments.port, arguments.overrides, arguments.follow)


def _summary(arguments: argparse.Namespace) -> int:
    from sleep_rl.summary import summarize

    return _say(summarize(arguments.runs))


def _watch(arguments: argparse.Namespace) -> int:
    from cluster.identity import held
    from sleep_rl.watch import Server

    with Server(arguments.run, arguments.host, arguments.port, held) as server:
        open_to = "" if server.loopback else "; WARNING: whoever reaches this address can read the run's texts"
        _say(f"{server.url} shows {arguments.run}; ctrl-C ends it{open_to}")
        server.serve_forever()
    return DONE


def _doctor(arguments: argparse.Namespace) -> int:
    from cluster.doctor import doctor

    return doctor(arguments.config, arguments.overrides, arguments.quick, _say)


def _config(_: argparse.Namespace) -> int:
    return _say(describe())
