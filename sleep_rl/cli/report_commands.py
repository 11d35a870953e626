"""Commands on the results of runs."""

from __future__ import annotations

import click

from sleep_rl.cli.arguments import RUN, command, run_folder
from sleep_rl.cli.output import print_answer


@command("report", "Write the HTML report of a run, finished or not.", RUN)
@run_folder
def report(run: str) -> None:
    from sleep_rl.report.page import write_report

    print_answer(write_report(run))


@command("dreams", "List the dreams of a run with their scores, best first.", RUN)
@run_folder
@click.option("--task", default="", metavar="TEXT", help="Only tasks whose name contains TEXT.")
@click.option("--night", type=int, metavar="N", help="Only dreams of night N.")
@click.option(
    "--only",
    default="",
    metavar="OUTCOME",
    help="Only dreams with this outcome: rewarded, unrewarded, rejected or failed.",
)
@click.option(
    "--sort",
    default="gain",
    metavar="FIELD",
    help="Field to sort by: gain, held_out, importance, tau_before or logprob (default gain).",
)
@click.option(
    "--most", type=int, default=20, metavar="N", help="Largest number of dreams (default 20)."
)
def dreams(run: str, task: str, night: int | None, only: str, sort: str, most: int) -> None:
    from sleep_rl.report.dreams import listing

    print_answer(listing(run, task=task, night=night, only=only, sort=sort, most=most))


@command("summary", "Print mean and range over runs, e.g. of several seeds.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
def summary(runs: tuple[str, ...]) -> None:
    from sleep_rl.report.summary import summarize

    print_answer(summarize(list(runs)))


@command("watch", "Serve a local page that shows a running or finished run.", RUN)
@run_folder
@click.option(
    "--host",
    default="127.0.0.1",
    help="Address to listen on (default 127.0.0.1: this machine only).",
)
@click.option(
    "--port", type=int, default=8420, help="Port to listen on (default 8420; 0: any free one)."
)
def watch(run: str, host: str, port: int) -> None:
    from sleep_rl.runs.run_dir import held
    from sleep_rl.watch.server import Server

    with Server(run, host, port, held) as server:
        line = f"{server.url} shows {run}; stop with ctrl-C"
        if not server.loopback:
            line += "; WARNING: anybody who can reach this address can read the run's texts"
        print_answer(line)
        server.serve_forever()
