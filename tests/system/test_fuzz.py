"""A thousand damaged and hostile inputs: each works or gives one line, in time, and changes no
saved file.

Commands run in this process up to the start of engines, where a backend raises, which counts as
"would have started". The seed is fixed; SLEEP_RL_FUZZ_SEED sets another one.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import time
import traceback
from pathlib import Path

import pytest
import yaml

from sleep_rl.cli.main import main
from sleep_rl.config.loader import keys, load
from sleep_rl.contracts.errors import RunError
from sleep_rl.journal.journal import Journal
from sleep_rl.model import checkpoints, memory_folder
from sleep_rl.report import sections
from sleep_rl.runs import run_dir
from sleep_rl.tasks.documents import ingestion
from sleep_rl.tasks.registry import make_task
from tests.fakes import damaged_files, mutations
from tests.fakes.crew import continue_life
from tests.fakes.models import make_base

pytestmark = pytest.mark.stack  # a thousand commands: too long for `make quick`

ROOT = Path(__file__).parents[2]
PRESETS = sorted((ROOT / "configs").glob("*.yaml"))
SEED = int(os.environ.get("SLEEP_RL_FUZZ_SEED", 5))
# by the clock, for what waits for ever; of computing, for what never comes to an end: the packaged
# base, which one of them dequantises, takes 15 s on a slow processor
LIMIT_S = 1800
CPU_S = 120
JARGON = re.compile(
    r"object has no|object is not|not subscriptable|index out of range|codec "
    r"can't|: '\w{1,20}'$|Error\b"
)
NO_ENGINES = "no engines are started in this test"
count = itertools.count()


class Hang(BaseException):
    """An exception that nothing catches."""


@pytest.fixture(autouse=True)
def no_engines(monkeypatch, tmp_path):
    """Replace the start of workers by an exception, and check figures instead of drawing them."""
    from cluster import launch, run_workers

    def refuse(*_, **__):
        raise RunError(NO_ENGINES)

    monkeypatch.setattr(run_workers, "RayBackend", refuse)
    monkeypatch.setattr(run_workers, "LocalBackend", refuse)
    monkeypatch.setattr(run_workers, "make_base", refuse)
    monkeypatch.setattr(launch, "make_base", refuse)

    def figure(chart):
        points = [point for series in chart.series for point in series.points]
        assert all(
            isinstance(x, (int, float)) and (y is None or isinstance(y, (int, float)))
            for x, y in points
        ), chart
        return ""

    monkeypatch.setattr(sections, "figure", figure)
    monkeypatch.setattr(argparse, "_", str)  # it looks for translations on the disk, each time
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def little_memory():
    """Limit the memory, so that an unbounded read fails."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def sentinel(tmp_path):
    """Return path -> content of every file of another saved run, which must not change."""
    folder = tmp_path / "runs" / "sentinel"
    (folder / "memory" / "night-1").mkdir(parents=True)
    for name in ("metrics.jsonl", "run.json", "memory/night-1/memory.safetensors"):
        (folder / name).write_text(f"{name} of somebody else\n")
    before = state_of(folder)
    yield folder
    assert state_of(folder) == before
    assert not list(tmp_path.rglob("pwned")), "something was executed"


def state_of(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def ends(capfd, argv, what):
    """Run a command and check how it ends; return (exit code, line)."""
    capfd.readouterr()
    next(count)

    def late(*_):
        raise Hang

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    began = time.thread_time()
    try:
        code = main(argv)
    except Hang:
        pytest.fail(f"{what}: {str(argv)[:300]} hangs", pytrace=False)
    # Whatever a command raises is what this looks for.
    except BaseException as error:  # noqa: BLE001
        # the whole may be a thousand frames deep
        frames = "".join(traceback.format_tb(error.__traceback__)[-3:])
        pytest.fail(
            f"{what}: {str(argv)[:300]} ends in {type(error).__name__}: "
            f"{str(error)[:200]}\n{frames}",
            pytrace=False,
        )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    took = time.thread_time() - began
    assert took < CPU_S, (what, argv, took)
    out, err = capfd.readouterr()
    assert code in (0, 1, 2), (what, argv, code)
    assert "Traceback" not in out + err, (what, argv, err[:2000])
    if code:
        lines = err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("sleep-rl: "), (what, argv, err)
        assert 20 < len(lines[0]) < 1500, (what, argv, lines[0])
        assert lines[0].isprintable(), (what, argv, err)
        assert (
            not JARGON.search(lines[0])
            or "cannot be read (" in lines[0]
            or "no readable " in lines[0]
        ), (what, argv, err)
    if os.environ.get("SLEEP_RL_FUZZ_SHOW"):
        with open(os.environ["SLEEP_RL_FUZZ_SHOW"], "a") as shown:
            print(f"{code} {took:.2f} s  {what}\n      {err.strip()[:300]}", file=shown)
    return code, err.strip()


# ---- configs


def task_data(folder):
    """Write small valid inputs of every task that reads some; return the overrides that point to
    them.
    """
    folder.mkdir(exist_ok=True)
    clinc = {
        split: [
            [f"{split} words {i} about {label}", label]
            for label in ("a_b", "c_d", "e_f")
            for i in range(3)
        ]
        for split in ("train", "test")
    }
    squad = [
        {
            "title": f"T{i}",
            "context": f"Passage {i} says that {i} is a number.",
            "completions": ["It is."],
            "questions": [{"question": f"What is {i}?", "answer": "a number"}],
        }
        for i in range(4)
    ]
    grid = [[0, 1], [2, 3]]
    arc = {
        f"p{i}": {"train": [{"input": grid, "output": grid}] * 3, "test": [{"input": grid}]}
        for i in range(3)
    }
    files = {
        "clinc.json": clinc,
        "squad.json": squad,
        "challenges.json": arc,
        "solutions.json": {name: [grid] for name in arc},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return files, {
        "clinc.json": [
            "task.name=classify",
            f"task.classify.path={folder}/clinc.json",
            "task.days=1",
            "task.classify.classes_per_day=2",
            "dream.rounds=0",
        ],
        "squad.json": [
            "task.name=squad",
            f"task.squad.path={folder}/squad.json",
            "task.days=1",
            "task.squad.passages_per_day=2",
        ],
        "challenges.json": [
            "task.name=arc",
            f"task.arc.path={folder}/challenges.json",
            "task.arc.puzzles_per_day=2",
            "rollouts.engine.max_model_len=8192",
            "rollouts.engine.kv_cache_memory_bytes=8589934592",
            "model.base=meta-llama/Llama-3.2-1B-Instruct",
        ],
    }


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.stem)
def test_mutated_configs_load_or_give_one_line_errors(preset, sentinel, tmp_path, capfd):
    rng = random.Random(f"{SEED} {preset.stem}")
    folder = tmp_path / "configs"
    shutil.copytree(ROOT / "configs", folder)
    _, data = task_data(tmp_path / "data")
    text = preset.read_text()
    path = folder / preset.name
    tree = yaml.safe_load(text)
    more = next(
        (
            given
            for name, given in data.items()
            if given[0] == f"task.name={(tree.get('task') or {}).get('name')}"
        ),
        [],
    )
    assert ends(capfd, ["plan", str(path), *more], "as it is")[0] == 0
    changed = [
        (f"bytes: {what}", content)
        for what, content in rng.sample(list(mutations.bytes_of(rng, text.encode())), 8)
    ]
    changed += [
        (f"yaml: {what}", content.encode("utf-8", "surrogatepass"))
        for what, content in rng.sample(list(mutations.yaml_of(rng, text, list(keys()))), 8)
    ]
    changed += [
        (f"values: {what}", json.dumps(content).encode())
        for what, content in mutations.data_of(rng, tree, 6)
    ]
    for what, content in changed:
        path.write_bytes(content)
        ends(capfd, [rng.choice(["plan", "plan", "run"]), str(path), *more], what)
    path.write_text(text)
    for what, overrides in mutations.overrides_of(rng, list(keys()), 10):
        ends(capfd, ["plan", str(path), *more, *overrides], what)


def test_mutated_config_files_load_or_give_one_line_errors(sentinel, tmp_path, capfd):
    """Other files in place of a config or one of its includes."""
    for what, change in damaged_files.FILES.items():
        for name in ("debug.yaml", "gkd_mixed.yaml"):
            shutil.rmtree(tmp_path / "configs", ignore_errors=True)
            shutil.copytree(ROOT / "configs", tmp_path / "configs")
            change(tmp_path / "configs" / name)
            code, _ = ends(capfd, ["plan", "configs/debug.yaml"], f"{name} is {what}")
            assert code == 2 or (what == "unreadable" and os.getuid() == 0)
    for name in (
        "x" * 5000,
        "\0",
        "",
        ".",
        "-",
        "/dev/zero",
        "/dev/stdin",
        "~",
        "a\nb",
        "🦙",
        "/proc/self/environ",
    ):
        assert ends(capfd, ["plan", name], f"a config named {name[:20]!r}")[0] == 2
    (tmp_path / "a.yaml").write_text("include: [b.yaml]\n")
    (tmp_path / "b.yaml").write_text("include: [./a.yaml]\n")
    assert "cycle" in ends(capfd, ["plan", "a.yaml"], "an include cycle")[1]
    for i in range(60):
        (tmp_path / f"bomb{i}.yaml").write_text(f"include: [bomb{i + 1}.yaml, bomb{i + 1}.yaml]\n")
    (tmp_path / "bomb60.yaml").write_text("run: {name: a}\n")
    assert ends(capfd, ["plan", "bomb0.yaml"], "includes that double")[0] == 2


# ---- documents


@pytest.mark.parametrize("name", ["clinc.json", "squad.json", "challenges.json"])
def test_mutated_task_inputs_load_or_give_one_line_errors(name, sentinel, tmp_path, capfd):
    rng = random.Random(f"{SEED} {name}")
    files, data = task_data(tmp_path / "data")
    path = tmp_path / "data" / name
    command = ["plan", str(ROOT / "configs" / "demo.yaml"), *data[name]]
    assert ends(capfd, command, "as it is")[0] == 0
    sound = path.read_bytes()
    trees = rng.sample(list(mutations.json_of(rng, files[name], 25)), 38)
    for what, content in [*mutations.bytes_of(rng, sound), *trees]:
        path.write_bytes(content)
        ends(capfd, command, f"{name}: {what}")
    for what, change in damaged_files.FILES.items():
        path.write_bytes(sound)
        change(path)
        code, _ = ends(capfd, command, f"{name} is {what}")
        assert code == 2 or (what == "unreadable" and os.getuid() == 0)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def test_random_document_folders_are_ingested_or_give_one_line_errors(sentinel, tmp_path, capfd):
    """A run reads, splits and records them, up to the start of engines; a refused one leaves no
    folder.
    """
    base = make_base("qwen3", str(tmp_path / "base"))
    for number, (what, folder) in enumerate(
        damaged_files.document_folders(random.Random(f"{SEED} documents"), tmp_path / "data")
    ):
        command = [
            "run",
            str(ROOT / "configs" / "documents_world.yaml"),
            f"task.documents.path={folder}",
            f"model.base={base}",
            f"run.name=d{number}",
            "rollouts.engine.max_model_len=200",
            "task.documents.max_new_tokens=32",
        ]
        code, line = ends(capfd, command, what)
        made = tmp_path / "runs" / f"d{number}"
        assert code == (1 if NO_ENGINES in line else 2), (what, line)
        assert made.is_dir() == (code == 1), (what, line)
        if code == 1:
            ingested = ingestion.read(made)
            assert len(ingested) == 1 and all(
                d.pieces and all(p.strip() for p in d.pieces) for d in ingested[0].documents
            ), what
            assert ends(capfd, command, f"{what}, again")[0] == 1
            assert ingestion.read(made) == ingested


# ---- saved things


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a finished run's folder: journal, metadata, checkpoints of the driver (fake workers),
    memory and model of a tiny base. The last record is removed, so that resume continues.
    """
    root = tmp_path_factory.mktemp("finished")
    base = make_base("qwen3", str(root / "base"))
    folder = root / "life"
    folder.mkdir()
    continue_life(folder)
    config = load(
        str(ROOT / "configs" / "debug.yaml"),
        [f"model.base={base}", "cluster.backend=local", "model.experts=4", "model.d_low=16"],
    )
    run_dir.write(folder, config, make_task(config))
    journal = Journal(folder / "metrics.jsonl")
    journal.log(
        "sample",
        day="day1",
        night=1,
        sender=0,
        round=1,
        tokens=4,
        sequences=2,
        failed=0,
        tokens_per_second=3.5,
        seconds=1.0,
        truncated=0.0,
        weights="student",
    )
    journal.log(
        "push",
        name="student",
        version=1,
        bytes=10,
        tensors=3,
        seconds=0.1,
        workers=1,
        probe_gap=0.0,
        pause=0.1,
    )
    journal.log(
        "dreamed",
        night=1,
        round=1,
        written=2,
        kept=1,
        rewarded=1,
        failed=0,
        tau_before=0.1,
        gain=0.2,
        gain_rewarded=0.2,
        gain_held_out=0.1,
    )
    for number, reason in enumerate(("", "it is empty")):
        journal.log(
            "dream",
            night=1,
            round=1,
            task="day1/0",
            number=number,
            seed=1,
            expert_seed=2,
            experts={},
            text="a dream",
            logprob=-1.0,
            reason=reason,
            importance=0.5,
            kept=not reason,
            tau_before=0.1,
            taus=[0.5],
            reward=1,
            gain=0.4,
            held_out=0.1,
        )
    journal.log("failure", where="reward", reason="late", count=2)
    journal.log(
        "run", config={"a": 1}, task="world", model=base, started=1.0, commit="abc", seeds=[0]
    )
    journal.close()
    memory = [{"experts": 4, "d_low": 16, "top_k": 5}]
    memory_folder.save_memory(
        checkpoints.load(base, memory), str(folder / "memory" / "night-1"), base
    )
    return folder


def saved(folder):
    """Return the files that must not change: memories, checkpoints and metadata."""
    return {
        k: v for k, v in state_of(folder).items() if k.startswith(("memory/", "state/", "run.json"))
    }


def test_damaged_journals_give_reports_or_one_line_errors(finished, sentinel, tmp_path, capfd):
    rng = random.Random(f"{SEED} records")
    folder = tmp_path / "life"
    commands = (["report", "life"], ["summary", "life"], ["dreams", "life"])
    shutil.copytree(finished, folder)
    path = folder / "metrics.jsonl"
    sound = (finished / "metrics.jsonl").read_bytes()
    assert [ends(capfd, argv, "as it is")[0] for argv in commands] == [0, 0, 0]
    lines = sound.splitlines()
    for what, content in mutations.bytes_of(rng, sound):
        path.write_bytes(content)
        ends(capfd, rng.choice(commands), f"record: {what}")
    of_kind = {json.loads(line)["kind"]: number for number, line in enumerate(lines)}
    for kind, number in of_kind.items():
        for what, content in mutations.data_of(rng, json.loads(lines[number]), 8):
            path.write_bytes(
                b"\n".join([*lines[:number], json.dumps(content).encode(), *lines[number + 1 :]])
            )
            for argv in commands if kind in ("evaluate", "dream") else commands[:1]:
                ends(capfd, argv, f"record of {kind}: {what}")
    for what, change in damaged_files.FILES.items():
        path.write_bytes(sound)
        change(path)
        ends(capfd, rng.choice(commands), f"the record is {what}")
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def test_damaged_runs_are_resumed_correctly_or_refused(finished, sentinel, tmp_path, capfd):
    rng = random.Random(f"{SEED} resume")
    folder = tmp_path / "life"

    def fresh():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(finished, folder)

    fresh()
    assert NO_ENGINES in ends(capfd, ["resume", "life"], "as it is")[1]
    newest = sorted((folder / "state").iterdir())[-1].name
    targets = {
        "run.json": 30,
        f"state/{newest}/driver.json": 12,
        f"state/{newest}/manifest.json": 8,
    }
    for name, times in targets.items():
        content = json.loads((finished / name).read_bytes())
        changed = [
            *rng.sample(list(mutations.bytes_of(rng, (finished / name).read_bytes())), times // 2),
            *rng.sample(list(mutations.json_of(rng, content, times)), times),
        ]
        for what, damaged in changed:
            fresh()
            (folder / name).write_bytes(damaged)
            # somebody meant it: its digest fits
            if name.endswith("driver.json") and rng.random() < 0.7:
                manifest = folder / "state" / newest / "manifest.json"
                digests = json.loads(manifest.read_text())
                digests["driver.json"] = hashlib.blake2b(damaged, digest_size=16).hexdigest()
                manifest.write_text(json.dumps(digests))
            before = saved(folder)
            ends(capfd, ["resume", "life"], f"{name}: {what}")
            assert saved(folder) == before, what
    for name in (*targets, "metrics.jsonl", f"state/{newest}", "state", "memory"):
        for what, change in rng.sample(sorted(damaged_files.FILES.items()), 4):
            fresh()
            change(folder / name)
            ends(capfd, ["resume", "life"], f"{name} is {what}")
    for name in (
        "none",
        "life/run.json",
        "",
        "\0",
        "x" * 5000,
        "/",
        "/dev/null",
        "runs/sentinel",
        "../" * 30,
    ):
        assert ends(capfd, ["resume", name], f"resume {name[:20]!r}")[0] == 2
        assert ends(capfd, ["scale", name, "rollouts=2"], f"scale {name[:20]!r}")[0] == 2
        assert ends(capfd, ["report", name], f"report {name[:20]!r}")[0] in (
            (2, 0) if name == "runs/sentinel" else (2,)
        )


def test_damaged_checkpoints_give_one_line_errors(finished, sentinel, tmp_path, capfd):
    rng = random.Random(f"{SEED} checkpoints")
    night = tmp_path / "night"
    base = tmp_path / "base"

    def fresh():
        for folder in (night, base):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(finished.parent / "base", base)
        shutil.copytree(finished / "memory" / "night-1", night)
        pointer = json.loads((night / "memory.json").read_text())
        (night / "memory.json").write_text(json.dumps({**pointer, "base": str(base)}))

    config = [str(ROOT / "configs" / "debug.yaml"), "model.experts=4", "model.d_low=16"]
    commands = (
        ["eval", "night", *config],
        ["plan", *config, "model.base=night"],
        ["eval", "base", *config],
        ["plan", *config, "model.base=base"],
        ["grow", "base", "grown", "--layers", "1"],
    )
    fresh()
    assert [ends(capfd, argv, "as it is")[0] for argv in commands[:4]] == [1, 0, 1, 0]
    targets = {
        "night/memory.json": 12,
        "base/config.json": 20,
        "base/tokenizer.json": 8,
        "base/tokenizer_config.json": 8,
        "night/memory.safetensors": 0,
        "base/model.safetensors": 0,
        "base/generation_config.json": 4,
    }
    for name, times in targets.items():
        fresh()
        sound = (tmp_path / name).read_bytes()
        changed = []
        if times:
            changed = [
                *rng.sample(list(mutations.bytes_of(rng, sound)), times // 2),
                *rng.sample(list(mutations.json_of(rng, json.loads(sound), times)), times),
            ]
        else:
            half = len(sound) // 2
            changed = [
                ("empty", b""),
                ("cut off", sound[:half]),
                ("its header alone", sound[:8]),
                ("huge header", b"\xff" * 8 + sound[8:]),
                ("random", rng.randbytes(1000)),
                ("text", b"version https://git-lfs.github.com/spec/v1\n"),
                ("bytes behind it", sound + b"x"),
            ]
        for what, damaged in changed:
            fresh()
            (tmp_path / name).write_bytes(damaged)
            ends(capfd, rng.choice(commands), f"{name}: {what}")
        for what, change in damaged_files.FILES.items():
            fresh()
            change(tmp_path / name)
            ends(capfd, rng.choice(commands), f"{name} is {what}")
        shutil.rmtree(tmp_path / "grown", ignore_errors=True)


def test_number_of_fuzz_cases():
    """It must run last in this file."""
    done = next(count)
    assert done == 0 or done >= 1000, done
