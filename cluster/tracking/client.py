"""The W&B client of a run, in a process of its own: `python -m cluster.tracking.client`. The only
module that imports wandb.

`cluster.tracking.sink` starts it and writes one JSON line per message to its stdin: first the
options of `start`, then ["recall", records] and ["log", record], at last ["end", exit code].
Responses are JSON lines on stdout: {"ready": folder}, {"failed": reason}, {"ended": true}. When
stdin ends without an "end", the run was killed: logged records are still sent, and W&B marks the
run as failed.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.tracking.curves import MATRIX, TABLES, Curves
from sleep_rl.journal.panels import axis_of
from sleep_rl.journal.schema import Record

# bytes that wandb may buffer before a file that does not grow is an error
SLACK = 128 << 10
CHECK_S = 5.0
# for the last bytes of a finished run, which wandb's process may write after `finish` has returned
FLUSH_S = 10.0


class Client:
    """Sends the records of one journal to one W&B run."""

    def __init__(self, run: Any, folder: Path, name: str, artifacts: bool) -> None:
        """Create a client without records. `run`: wandb's; `folder`, `name`: of the sleep_rl run;
        `artifacts`: upload each night's memory.
        """
        self._run = run
        self._folder = folder
        self._name = name
        self._artifacts = artifacts
        self._curves = Curves()
        self._phases: set[str] = set()  # whose x axis W&B knows
        self._sent = 0  # lower bound of the logged bytes
        self._size = 0  # bytes of the file at the last check
        self._checked = time.monotonic()

    def recall(self, records: list[Record]) -> None:
        """Continue the curves after these records of a resumed run. Rows that W&B has already are
        logged again with the same step, and W&B drops them.
        """
        self._curves = Curves(records)

    def log(self, record: Record) -> None:
        """Log one row of W&B's history, if the record has curves, a table or a matrix."""
        import wandb

        curves = self._curves
        update = curves.take(record)
        if update.phase:
            self._define_axis(update.phase)
        row: dict[str, Any] = dict(update.numbers)
        row |= {
            name: wandb.Table(columns=list(TABLES[name]), data=rows)
            for name, rows in update.tables.items()
        }
        if update.matrix:
            row[MATRIX] = wandb.Image(_picture(curves), caption=f"after {record['after']}")
        if row:
            self._run.log(row, step=curves.rows, commit=True)
            self._sent += sum(map(len, update.numbers))
        if update.summary:
            self._run.summary.update(update.summary)
        if update.memory and self._artifacts:
            self._send_memory(update.memory, record["night"])
        if time.monotonic() - self._checked > CHECK_S:
            self._check_growth(SLACK)

    def end(self, code: int) -> None:
        """Finish the W&B run with an exit code. Raises OSError when its file is incomplete."""
        self._run.finish(exit_code=code)
        if self._run.offline:
            self._wait_for_last_bytes()
        self._size = -1
        self._check_growth(0)

    def _define_axis(self, phase: str) -> None:
        """Plot the numbers of a phase over its own x axis."""
        if phase not in self._phases:
            self._run.define_metric(axis_of(phase), hidden=True)
            self._run.define_metric(f"{phase}/*", step_metric=axis_of(phase))
            self._phases.add(phase)

    def _send_memory(self, path: str, night: int) -> None:
        import wandb

        evaluations = self._curves.retention.evaluations.get("sleep", {})
        after = evaluations.get(f"night {night}")
        about = {"night": night, "accuracies": after.row if after else {}}
        artifact = wandb.Artifact(f"{self._name}-memory", type="memory", metadata=about)
        # immutable: no second copy on the disk
        artifact.add_dir(str(self._folder / path), policy="immutable")
        self._run.log_artifact(artifact, aliases=["latest", f"night-{night}"])

    def _wait_for_last_bytes(self) -> None:
        """Wait until the file of an offline run holds what was logged, for at most FLUSH_S."""
        file = Path(self._run.settings.sync_file)
        deadline = time.monotonic() + FLUSH_S
        while file.stat().st_size < self._sent and time.monotonic() < deadline:
            time.sleep(0.05)

    def _check_growth(self, slack: int) -> None:
        """Raise OSError if the file of an offline run has stopped growing with more than `slack`
        bytes missing, or lacks any at the end (`_size` -1). wandb drops what it cannot write to a
        full disk, and reports nothing.
        """
        self._checked = time.monotonic()
        if not self._run.offline:
            return
        file = Path(self._run.settings.sync_file)
        before = self._size
        size = file.stat().st_size
        self._size = size
        stopped = size <= before and self._sent - size > slack
        incomplete = before < 0 and size < self._sent
        if stopped or incomplete:
            raise OSError(
                f"{file} holds {size:,} of at least {self._sent:,} bytes: is the disk full?"
            )


def _picture(curves: Curves) -> Any:
    from PIL import Image

    from sleep_rl.report.heatmap import png

    return Image.open(io.BytesIO(png(curves.retention)))


def start(options: Mapping[str, Any]) -> Any:
    """Start a silent wandb run and return it. `options`: see WandbSink."""
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        git_commit=options["commit"],
        # command line, source and remote may hold secrets
        disable_code=True,
        disable_git=True,
        x_disable_meta=True,
        init_timeout=options["start_seconds"],
        finish_timeout=options["close_seconds"],
        x_stats_pid=os.getppid(),
    )
    wandb.setup(settings=wandb.Settings(silent=True))
    mode = options["mode"]
    if mode == "online" and os.environ.get("WANDB_MODE") == "offline":
        mode = "offline"  # set on a node without network
    # otherwise wandb.init would prompt on the terminal and wait
    if mode == "online" and not wandb.login(prompt=False, verify=False):
        raise RuntimeError(
            "wandb.mode is online, but there is no API key: set WANDB_API_KEY, "
            "run `wandb login`, or use wandb.mode=offline"
        )
    return wandb.init(
        mode=mode,
        settings=settings,
        project=options["project"],
        dir=options["dir"],
        name=options["name"],
        group=options["group"],
        id=options["run_id"],
        resume="allow" if options["run_id"] else None,
        config={**options["config"], "commit": options["commit"]},
    )


def main() -> int:
    """Handle the messages of one sink; return the exit code. wandb's own output goes to stderr,
    which the sink redirects to a file.
    """
    responses = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def respond(**content: Any) -> None:
        print(json.dumps(content), file=responses, flush=True)

    try:
        options = json.loads(sys.stdin.readline())
        client = Client(
            start(options), Path(options["dir"]), options["name"] or "run", options["artifacts"]
        )
    # wandb raises many types; each means that this run has no W&B
    except Exception as error:  # noqa: BLE001
        # without wandb's advice about a setting that users of sleep_rl cannot change
        text = str(error).split(" Consider increasing")[0]
        respond(failed=f"could not start: {type(error).__name__}: {text}")
        return 1
    try:
        respond(ready=str(Path(client._run.dir).parent))
        for line in sys.stdin:
            method, content = json.loads(line)
            getattr(client, method)(content)
            if method == "end":
                respond(ended=True)
                return 0
        client.end(1)
    except BrokenPipeError:  # the sink's process has ended
        return 1
    # as above
    except Exception as error:  # noqa: BLE001
        respond(failed=f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
