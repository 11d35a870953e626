"""The workers of a run as its journal and their logs show them: what each role did last, restarts,
last lines.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from sleep_rl.journal.journal import Record
from sleep_rl.journal.retention import METHODS

ROLES = ("rollout", "learner", "reward", "semantic", "critic", "other")
"""Roles of workers, in the order of the page; `other`: smaller models of model.teachers."""
TAIL_BYTES, TAIL_CHARACTERS = 4096, 240
CONTROL = re.compile(
    r"\x1b\[[0-9;?]*[ "
    r"-/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


class Crew:
    """Who works in a run. Records tell of all workers of a role together, logs of each one."""

    def __init__(self) -> None:
        self.names: dict[str, bool] = {}  # worker -> whether it left
        self.restarts: Counter[str] = Counter()
        # role -> kind -> words, time
        self.did: dict[str, dict[str, tuple[str, float]]] = {role: {} for role in ROLES}
        # log -> (size, time of change), last line
        self._tails: dict[str, tuple[tuple[int, int], str]] = {}

    def add(self, record: Record) -> None:
        kind, t = record["kind"], record["t"]
        if kind == "run":
            self.names |= dict.fromkeys(_planned(record.get("config") or {}), False)
        elif kind == "restarted":
            self.restarts[str(record["worker"])] += 1
        elif kind == "scaled":
            self.names[str(record["worker"])] = not record["joined"]
        elif kind == "sample":
            speed = record.get("tokens_per_second")
            self.did["rollout"]["sample"] = (
                f"sampled {record.get('sequences') or 0:,} sequences "
                f"({record.get('weights') or 'model'})"
                + (f", {speed:,.0f} tokens a second" if speed else ""),
                t,
            )
        elif kind == "push":
            self.did["rollout"]["push"] = (
                f"verified version {record.get('version')} of the {record['name']}",
                t,
            )
        elif kind in ("seed", "baseline", "policy"):
            what = {"seed": "consolidation", "policy": "dreaming policy"}.get(kind)
            what = what or METHODS.get(record["method"], record["method"])
            steps = f" of {record['steps']:,}" if record.get("steps") else ""
            loss = "" if record.get("loss") is None else f", loss {record['loss']:.3f}"
            self.did["learner"]["step"] = (
                f"{what}, step {record.get('step', 0) + 1:,}{steps}{loss}",
                t,
            )
            if kind == "seed" and record.get("reward_mean") is not None:
                self.did["reward"]["score"] = (f"mean reward {record['reward_mean']:.2f}", t)
        elif kind == "wake":
            self.did["learner"]["step"] = (f"took in {record['step']} documents", t)
        elif kind == "tried":
            self.did["critic"]["tried"] = (
                f"trained {record.get('copies')} copies on {record.get('dreams')} dreams",
                t,
            )

    def state(self, logs: Path) -> list[dict[str, Any]]:
        """Per role what it did last, and its workers with restarts and the end of their logs."""
        tails = self._read(logs)
        names = sorted({*self.names, *tails, *self.restarts} - {"all workers"}, key=_order)
        roles: dict[str, list[dict[str, Any]]] = {}
        for name in names:
            tail = tails.get(name)
            roles.setdefault(_role(name), []).append(
                {
                    "name": name,
                    "restarts": self.restarts[name],
                    "left": self.names.get(name, False),
                    "log": tail and {"line": tail[1], "t": tail[0][1] / 1e9, "bytes": tail[0][0]},
                }
            )
        return [
            {
                "role": role,
                "workers": workers,
                "did": [
                    {"said": said, "t": t}
                    for said, t in sorted(self.did.get(role, {}).values(), key=lambda d: -d[1])
                ],
                "restarts": self.restarts["all workers"] if role == "learner" else 0,
            }
            for role, workers in roles.items()
        ]

    def _read(self, logs: Path) -> dict[str, tuple[tuple[int, int], str]]:
        """Name -> (bytes, nanoseconds of the last change), last line; of every log. One that cannot
        be read says why.
        """
        try:
            files = [
                entry
                for entry in os.scandir(logs)
                if entry.name.endswith(".log") and entry.is_file(follow_symlinks=False)
            ]
        except OSError:  # workers in this process have no logs
            files = []
        seen = self._tails
        self._tails = {}
        for entry in files:
            name, stat = entry.name.removesuffix(".log"), entry.stat(follow_symlinks=False)
            now = (stat.st_size, stat.st_mtime_ns)
            before = seen.get(name)
            self._tails[name] = (
                before
                if before and before[0] == now
                else (now, _last_line(entry.path, stat.st_size))
            )
        return self._tails


def _last_line(path: str, size: int) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, size - TAIL_BYTES))
            # a progress bar writes over its own line
            lines = re.split(rb"[\r\n]+", file.read(TAIL_BYTES))
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    texts = (CONTROL.sub("", line.decode("utf-8", "replace")).strip() for line in reversed(lines))
    return next((text for text in texts if text), "")[:TAIL_CHARACTERS]


def _planned(config: dict[str, Any]) -> list[str]:
    """Names of the workers that a run starts with, from its recorded config."""

    def section(name: str) -> dict[str, Any]:
        return config.get(name) or {}

    reward = section("reward").get("workers", 1)
    counts = {
        "rollout": section("rollouts").get("workers", 0),
        "learner": section("learners").get("world_size", 0),
        "reward": reward if config else 0,
        "semantic": reward if section("reward").get("semantic", "none") != "none" else 0,
        "critic": section("critics").get("workers", 0) if section("dream").get("rounds") else 0,
    }
    others = [f"other-{k}" for k in range(1, len(section("model").get("teachers") or ()) + 1)]
    return [f"{role}-{i}" for role, count in counts.items() for i in range(count)] + others


def _role(name: str) -> str:
    role = re.sub(r"-\d+$", "", name)
    return role if role in ROLES else "files"


def _order(name: str) -> tuple:
    role, number = _role(name), re.search(r"\d+$", name)
    return (
        ROLES.index(role) if role in ROLES else len(ROLES),
        int(number[0]) if number else 0,
        name,
    )
