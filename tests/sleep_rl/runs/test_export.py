"""Exported checkpoints are self-contained; their model card has the results of the journal."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sleep_rl.cli.main import main
from sleep_rl.config.loader import dump
from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.journal.journal import Journal
from sleep_rl.model import checkpoints, memory_folder
from sleep_rl.runs.export import export
from tests.fakes.configs import toy
from tests.fakes.models import LEVELS, fill_memory, make_base, make_tokenizer
from tests.fakes.processes import LIMIT_S

IDS = torch.randint(2, 250, (2, 24), generator=torch.Generator().manual_seed(5))
ALONE = """
import json, sys
sys.modules.update(sleep_rl=None, actors=None)  # any import of them fails
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
ids = torch.tensor(json.loads(sys.argv[1]))
for path in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
    with torch.no_grad():
        print(json.dumps([model(ids).logits.tolist(), tokenizer("yes and no")["input_ids"]]))
"""


def make_run(
    folder: Path, base: str, nights: int = 2, records: bool = False, kind: str = "dense"
) -> list[torch.nn.Module]:
    """Write a run's folder with memory/night-1 and later ones, with different weights; return the
    models after each night.
    """
    models = []
    for night in range(1, nights + 1):
        models.append(checkpoints.load(base, LEVELS[kind]))
        fill_memory(models[-1], seed=night)
        memory_folder.save_memory(models[-1], str(folder / "memory" / f"night-{night}"), base)
    journal = Journal(folder / "metrics.jsonl")
    config = dump(toy(task={"classify": {"path": "/home/somebody/clinc"}}))
    config["sleep"]["steps"] = 7
    config["wandb"]["api_key"] = config["task"]["hf_token"] = "hush"
    journal.log(
        "run", config=config, task="world", model=base, started=0.0, commit="abc123", seeds=[3]
    )
    if records:
        journal.log(
            "evaluate",
            after="base",
            method="sleep",
            row={"known": 0.9},
            open_book=None,
            n={"known": 400},
        )
        for night in range(1, nights + 1):
            journal.log("wake", day=f"day{night}", step=4, loss=1.0)
            journal.log(
                "written",
                night=night,
                sender=0,
                day=f"day{night}",
                new=720 + night,
                unconditional=100,
                rehearsed=5,
            )
            journal.log(
                "night", night=night, sender=0, day=f"day{night}", steps=7, tokens_trained=123456.0
            )
            row = {"known": 0.875, **{f"day{d}": 0.5 + d / 8 for d in range(1, night + 1)}}
            for method in ("sleep", "sft"):
                journal.log(
                    "evaluate",
                    after=f"night {night}",
                    method=method,
                    row=row,
                    open_book={f"day{night}": 1.0},
                    n={"known": 400, **{f"day{d}": 48 for d in range(1, night + 1)}},
                )
        journal.log(
            "evaluate",
            after=f"night {nights}",
            method="joint",
            row={"known": 1.0, "day1": 0.99},
            n={},
        )
    journal.close()
    return models


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.stack  # a process that imports transformers and no package of ours
def test_exported_model_is_equal_and_self_contained(tmp_path):
    """From a run (with a base in several files), a memory folder (with memory in the upper layer
    alone) and a full checkpoint, each of another family.
    """
    want = {}
    out = {family: str(tmp_path / f"out-{family}") for family in checkpoints.FAMILIES}
    for family in checkpoints.FAMILIES:
        base = make_base(family, str(tmp_path / "here" / family))
        if family == "qwen3":
            AutoModelForCausalLM.from_pretrained(base).save_pretrained(base, max_shard_size="60KB")
            os.remove(os.path.join(base, checkpoints.WEIGHTS))
            assert len(list(Path(base).glob("model-*.safetensors"))) > 2
        run = tmp_path / "here" / f"run-{family}"
        last = make_run(run, base, kind="upper" if family == "qwen2" else "dense")[-1]
        checkpoints.save(last, make_tokenizer(), str(run / "model"))
        want[family] = logits(last)
        source = {"qwen3": run, "qwen2": run / "memory" / "night-2", "llama": run / "model"}[family]
        assert main(["export", str(source), out[family]]) == 0
    shutil.rmtree(tmp_path / "here")
    for family, path in out.items():
        files = list(Path(path).iterdir())
        assert not any(file.is_symlink() or file.name == memory_folder.POINTER for file in files)
        assert {file.suffix for file in files} <= {".safetensors", ".json", ".py", ".md"}
        assert not any(
            str(tmp_path) in file.read_text() for file in files if file.suffix != ".safetensors"
        )
        assert torch.equal(logits(checkpoints.load(path)), want[family])
    done = subprocess.run(
        [sys.executable, "-c", ALONE, json.dumps(IDS.tolist()), *out.values()],
        text=True,
        timeout=LIMIT_S,
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "code")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for line, family in zip(done.stdout.splitlines(), out, strict=True):
        found, ids = json.loads(line)
        assert torch.equal(torch.tensor(found), want[family]), family
        assert ids == make_tokenizer()("yes and no")["input_ids"]


def test_model_card_has_results_and_no_local_paths(base_checkpoint, tmp_path):
    make_run(tmp_path / "run", base_checkpoint(), records=True)
    text = (Path(export(str(tmp_path / "run"), str(tmp_path / "mine"))) / "README.md").read_text()
    for line in (
        "# mine",
        "Nights: 2.",
        "4 consolidation experts of width 16, at most 4 at a time.",
        "| 2 | day2 | the day's documents | 722 | 5 | 100 | 7 | 123,456 |",
        "| after | known | day1 | day2 |",
        "| before the first day | 0.90 | – | – |",
        "| night 1 | 0.88 | 0.62 | – |",
        "| night 2 | 0.88 | 0.62 | 0.75 |",
        "| plain SFT, night 2 | 0.88 | 0.62 | 0.75 |",
        "| joint upper bound, night 2 | 1.00 | 0.99 | – |",
        "| open book | – | 1.00 | 1.00 |",
        "| questions | 400 | 48 | 48 |",
        "sleep.steps: 7",
        'task.classify.path: "clinc"',
        "sleep-rl serve mine",
    ):
        assert line in text.replace("\n\n", "\n").splitlines() or line in text, line
    assert "abc123" in text and "seeds 3" in text and f"torch {torch.__version__}" in text
    for secret in ("hush", "somebody", str(tmp_path), "token:", "api_key"):
        assert secret not in text


def test_model_card_of_an_earlier_night(base_checkpoint, tmp_path):
    make_run(tmp_path / "run", base_checkpoint(), records=True)
    out = export(str(tmp_path / "run" / "memory" / "night-1"), str(tmp_path / "out"))
    text = (Path(out) / "README.md").read_text()
    assert "| night 1 | 0.88 | 0.62 |" in text and "| plain SFT, night 1 | 0.88 | 0.62 |" in text
    assert "night 2" not in text and "day2" not in text and "joint" not in text


def test_model_card_without_run(sleep_checkpoint, tmp_path):
    upper = Path(export(sleep_checkpoint("qwen3", "upper"), str(tmp_path / "upper")), "README.md")
    assert "with memory in front of the MLPs of layers 1 and up. Each night" in upper.read_text()
    text = (Path(export(sleep_checkpoint(), str(tmp_path / "out"))) / "README.md").read_text()
    assert "with memory in front of every MLP. Each night" in text
    assert "## Use" in text and "## Retention" not in text and "## Configuration" not in text


def test_existing_target_is_refused(sleep_checkpoint, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("folder", "file", "link"):
        assert main(["export", sleep_checkpoint(), str(tmp_path / name)]) == 2
        assert (
            capsys.readouterr().err == f"sleep-rl: export: a new folder, {tmp_path / name} exists\n"
        )
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "link"] and not os.listdir(
        tmp_path / "folder"
    )


def test_target_created_meanwhile_is_kept(tmp_path):
    with (
        pytest.raises(RunError, match="cannot be written"),
        memory_folder.atomic_checkpoint(str(tmp_path / "out"), replace=False),
    ):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("")
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["theirs"]


def test_full_disk_leaves_no_folder(sleep_checkpoint, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
    try:
        with pytest.raises(RunError, match="cannot be written"):
            export(sleep_checkpoint(), str(tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


def test_invalid_checkpoints_give_one_line_errors(
    base_checkpoint, sleep_checkpoint, tmp_path, capsys
):
    empty = tmp_path / "empty"
    run = tmp_path / "run"
    damaged = tmp_path / "damaged"
    empty.mkdir()
    Journal(run / "metrics.jsonl").close()
    shutil.copytree(sleep_checkpoint(), damaged)
    weights = load_file(damaged / checkpoints.WEIGHTS)
    index = {key: checkpoints.WEIGHTS for key in weights}
    weights.pop("model.layers.1.mlp.memory.0.w_in")
    save_file(weights, damaged / checkpoints.WEIGHTS, metadata={"format": "pt"})
    (damaged / checkpoints.INDEX).write_text(json.dumps({"weight_map": index}))
    for source, said in (
        (empty, "a folder with none of them"),
        (run, "a run that has slept"),
        (damaged, "w_in, which the index lists"),
        (tmp_path / "none", "no such folder"),
        (Path(base_checkpoint()), "a sleep checkpoint is needed"),
    ):
        assert main(["export", str(source), str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError):
        checkpoints.levels_of(base_checkpoint())
