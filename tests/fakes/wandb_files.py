"""A sink with a real W&B client in offline mode, and what it wrote into wandb's files."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from cluster.tracking.sink import WandbSink
from tests.fakes.processes import LIMIT_S


def records_of(folder: Path) -> list:
    """Records of a client's .wandb file: LevelDB's log format (blocks of 32 KiB, 7-byte chunk
    headers) of protobufs.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("*.wandb")
    data = path.read_bytes()
    at = 7  # bytes of the file header
    whole = b""
    records = []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # a block's rest that is too short for a header
            at += 32768 - at % 32768
            continue
        _, length, part = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # a full record, or the last chunk of one
            records.append(Record.FromString(whole))
            whole = b""
    return records


def folders(run: Path) -> list[Path]:
    """The client's folders of a run, the oldest first."""
    return sorted(run.glob("wandb/offline-run-*"))


def rows(folder: Path) -> list[dict]:
    return [
        {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item}
        for r in records_of(folder)
        if r.HasField("history")
    ]


def curve(folder: Path, x: str, y: str) -> list[tuple]:
    return [(row[x], row[y]) for row in rows(folder) if y in row]


def summary(folder: Path) -> dict:
    return {
        "/".join(u.nested_key) or u.key: json.loads(u.value_json)
        for r in records_of(folder)
        if r.HasField("summary")
        for u in r.summary.update
    }


def sink_of(folder: Path, mode: str = "offline", **more) -> WandbSink:
    limits = dict.fromkeys(("start_seconds", "stall_seconds", "close_seconds"), LIMIT_S)
    return WandbSink("sleep", mode, **{"dir": folder, "config": {}, **limits, **more})
