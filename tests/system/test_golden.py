"""A golden run for refactorings: a small life as text, from config to memory.

Real driver, night, learner, rewards, weight store and journal in this process; scripted rollouts.
Numbers are compared to 1e-3, so that any processor passes; on the machine that wrote the text the
bytes of the memory are compared as well, in the passes of that time. `python -m
tests.system.test_golden` rewrites tests/system/golden/life.txt: only if the numbers are meant to
change.
"""

from __future__ import annotations

import hashlib
import math
import platform
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cluster import launch
from sleep_rl.config.loader import load as load_config
from sleep_rl.journal.journal import read
from tests.fakes.backends import StandInBackend
from tests.fakes.models import make_base
from tests.system.golden.passes_of_rows import use_passes_of_rows
from tests.system.golden.scripted import DAYS, ScriptedRollout

HERE = Path(__file__).parent / "golden"
GOLDEN = HERE / "life.txt"
SEED_FIELDS = (
    "loss",
    "divergence",
    "divergence_replay",
    "policy_loss",
    "grad_norm",
    "lr",
    "reward_mean",
    "reward_std",
    "tokens_trained",
    "sequences",
)

FIELD = {"replay": "unconditional"}
"""Word of the text -> field of the record, where they differ."""


def machine() -> str:
    """Return what the last bits of a sum depend on: the processor's kind with its instruction sets,
    and torch.
    """
    cpu = Path("/proc/cpuinfo")
    first = (
        cpu.read_text().split("\n\n")[0].splitlines() if cpu.exists() else [platform.processor()]
    )
    named = ("vendor_id", "cpu family", "model", "stepping", "flags")
    kind = [line for line in first if line.partition(":")[0].strip() in named]
    digest = hashlib.blake2b(str(kind or first).encode(), digest_size=8).hexdigest()
    return f"{digest} torch {torch.__version__}"


def life_text(folder: Path) -> str:
    """Run the golden life in `folder`; return its text."""
    base = make_base("qwen3", str(folder / "base"))
    root = Path(__file__).parents[2]
    target = f"task.custom.target={root / 'tests/system/golden/scripted.py'}:Skies"
    config = load_config(HERE / "life.yaml", [f"run.dir={folder}", f"model.base={base}", target])
    assert launch.run(config, lambda config, folder: StandInBackend(ScriptedRollout)) == 0
    records = read(folder / "golden" / "metrics.jsonl")
    lines = [f"machine {machine()}"]
    for record in records:
        lines += described(record)
    for night in range(1, DAYS + 1):
        lines += memory_lines(
            night, folder / "golden" / "memory" / f"night-{night}" / "memory.safetensors"
        )
    return "\n".join(lines) + "\n"


def described(record: dict) -> list[str]:
    """The lines of one journal record; none for what holds times."""
    kind = record["kind"]
    if kind == "seed":
        fields = " ".join(f"{f} {record[f]:.6g}" for f in SEED_FIELDS if f in record)
        return [
            f"seed {record['night']} {record['sender']} {record['day']} step "
            f"{record['step']} {fields}"
        ]
    if kind == "written":
        names = (
            "new",
            "replay",
            "rehearsed",
            "prompts",
            "read",
            "failed",
            "unfinished",
            "no_answer",
            "unsure",
        )
        counts = " ".join(f"{n} {record[FIELD.get(n, n)]}" for n in names)
        return [f"written {record['night']} {record['sender']} {counts}"]
    if kind == "baseline":
        return [
            f"baseline {record['method']} {record['day']} step {record['step']} loss "
            f"{record['loss']:.6g}"
        ]
    if kind == "evaluate":
        rows = record["row"] | {f"open {k}": v for k, v in (record["open_book"] or {}).items()}
        values = " ".join(f"{k} {v:.4g}" for k, v in rows.items())
        return [f"evaluate {record['after']} {record['method']} {values}"]
    if kind == "wake":
        return [f"wake {record['day']} loss {record['loss']:.6g}"]
    return []


def memory_lines(night: int, path: Path) -> list[str]:
    """Per tensor its norm and a fixed random projection; and one digest of all bytes."""
    state = hashlib.blake2b(digest_size=16)
    lines = []
    for name, tensor in sorted(load_file(path).items()):
        state.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
        flat = tensor.double().flatten()
        direction = torch.cos(torch.arange(len(flat), dtype=torch.float64) ** 1.5)
        lines.append(
            f"memory {night} {name} norm {flat.norm():.6g} projection {flat @ direction:.6g}"
        )
    return [*lines, f"bytes {night} {state.hexdigest()}"]


def alike(ours: str, golden: str) -> bool:
    """Whether two lines say the same: words exactly, numbers to 1e-3."""
    a = ours.split()
    b = golden.split()
    return len(a) == len(b) and all(x == y or close(x, y) for x, y in zip(a, b, strict=True))


def close(x: str, y: str) -> bool:
    try:
        return math.isclose(float(x), float(y), rel_tol=1e-3, abs_tol=2e-3)
    except ValueError:
        return False


@pytest.mark.parametrize("passes", ["by tokens", pytest.param("of rows", marks=pytest.mark.stack)])
def test_golden_run_is_unchanged(passes, tmp_path, monkeypatch):
    """However passes are formed; to the last byte in the passes of the text."""
    if passes == "of rows":
        use_passes_of_rows(monkeypatch)
    golden = GOLDEN.read_text().splitlines()
    ours = life_text(tmp_path).splitlines()
    same_machine = ours[0] == golden[0] and passes == "of rows"
    differ = [
        (mine, wanted)
        for mine, wanted in zip(ours[1:], golden[1:], strict=True)
        if not alike(mine, wanted) and (same_machine or not wanted.startswith("bytes"))
    ]
    assert differ == []


def test_comparison_detects_a_changed_number():
    assert alike("seed 1 loss 0.5001", "seed 1 loss 0.5")
    assert not alike("seed 1 loss 0.52", "seed 1 loss 0.5")
    assert not alike("seed 1 loss 0.5", "seed 2 loss 0.5")
    assert not alike("bytes 1 aa", "bytes 1 ab")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        use_passes_of_rows(patch)
        text = life_text(Path(scratch))
    GOLDEN.write_text(text) if "--print" not in sys.argv else print(text)
