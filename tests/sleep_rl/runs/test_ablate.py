"""Ablations: which runs are started, which exist already, and the table."""

import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from sleep_rl.cli.main import main
from sleep_rl.config.loader import dump, load
from sleep_rl.contracts.errors import InputError
from sleep_rl.journal.retention import wilson_interval
from sleep_rl.runs import ablate
from tests.fakes.configs import flat

DEMO = str(Path(__file__).parents[3] / "configs" / "demo.yaml")


@pytest.fixture
def lives(monkeypatch, tmp_path):
    """A fake `sleep-rl run` that checks its command line and writes the journal of such a run;
    `fail` names runs.
    """
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []

    def run(command):
        assert command[1:4] == ["-m", "sleep_rl", "run"]
        config = load(command[4], command[5:])
        asked.append(config.run.name)
        folder = Path(config.run.dir) / config.run.name
        folder.mkdir(parents=True)
        broken = config.run.name in run.fail
        day2 = 0.5 if config.replay.share == 0 else 1.0
        records = [
            {"t": 0, "kind": "run", "config": dump(config)},
            {
                "t": 1,
                "kind": "evaluate",
                "after": "night 2",
                "method": "sleep",
                "open_book": None,
                "row": {"known": 0.9 + 0.1 * config.run.seed, "day1": 0.75, "day2": day2},
                "n": {"known": 10, "day1": 8, "day2": 4},
            },
            {
                "t": 2,
                "kind": "done",
                "status": "failed" if broken else "ok",
                "seconds": 1,
                "reason": None,
            },
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        return CompletedProcess(command, int(broken))

    run.asked = asked
    run.fail = ()
    monkeypatch.setattr(ablate.subprocess, "run", run)
    return run


def test_rows_change_only_their_keys():
    rows = ablate.ablation_runs(
        DEMO,
        [
            "model.chunks=[1,2]",
            "model.top_k=2",
            "model.experts=6",
            "reward.semantic=encoder",
            "reward.gamma=0.5",
            "task.world.deep=true",
            "dream.rounds=1",
        ],
        [],
        1,
    )
    assert list(rows) == list(ablate.ROWS)
    whole = flat(rows["whole"][0].config)
    for name, [run] in rows.items():
        changed = {key for key, value in flat(run.config).items() if whole[key] != value}
        changed -= {"run.name", "run.seed"}
        assert changed - {"sleep.on_full"} == {
            key.partition("=")[0] for key in ablate.ROWS[name]
        }, name
    assert rows["no-sparsity"][0].config.model.top_k == whole["model.experts"]


def test_unchanged_rows_are_skipped_and_unknown_ones_refused():
    rows = ablate.ablation_runs(DEMO, ["rehearsal.share=0"], [], 1)
    assert {"no-rehearsal", "no-sparsity", "one-level", "no-semantic-reward"} & set(rows) == set()
    with pytest.raises(InputError, match=r"--rows: allowed are whole, .* got no-sleep"):
        ablate.ablation_runs(DEMO, [], ["no-sleep"], 1)


def test_runs_are_run_once_and_the_table_pools_answers(lives, capsys):
    command = ["ablate", "--seeds", "2", "--rows", "no-replay", DEMO, "run.name=a"]
    assert main(command) == 0
    assert lives.asked == ["a-whole-s0", "a-whole-s1", "a-no-replay-s0", "a-no-replay-s1"]
    out = capsys.readouterr().out.splitlines()
    low, high = wilson_interval(0.95, 20)
    assert out[-3].split() == ["row", "known", "earlier", "days", "newest", "day", "note"]
    assert out[-2].split()[:4] == ["whole", "0.950", f"[{low:.3f},", f"{high:.3f}]"]
    low, high = wilson_interval(0.5, 8)
    assert out[-1].split()[-3:] == ["0.500", f"[{low:.3f},", f"{high:.3f}]"]
    assert main(command) == 0 and len(lives.asked) == 4  # they exist
    assert "a-whole-s0: exists" in capsys.readouterr().out
    assert main([*command, "sleep.steps=5"]) == 2
    assert "runs/a-whole-s0: has a run with another configuration" in capsys.readouterr().err


def test_failed_run_is_named_and_repeated(lives, capsys):
    lives.fail = ("b-no-replay-s1",)
    command = ["ablate", "--seeds", "2", "--rows", "no-replay", DEMO, "run.name=b"]
    assert main(command) == 0
    assert "[1 of 2 seeds]; b-no-replay-s1: exit code 1" in capsys.readouterr().out
    lives.fail = ()
    assert main(command) == 0
    assert lives.asked[-1] == "b-no-replay-s1" and len(lives.asked) == 5
    assert (
        "exit code" not in capsys.readouterr().out and Path("runs/b-no-replay-s1-failed").is_dir()
    )


def test_wandb_group_of_an_ablation(lives):
    def groups(*more):
        return {
            run.config.wandb.group
            for runs in ablate.ablation_runs(DEMO, ["run.name=c", *more], ["no-replay"], 2).values()
            for run in runs
        }

    assert groups() == {"c-ablation"} and groups("wandb.group=mine") == {"mine"}
    command = ["ablate", "--seeds", "1", "--rows", "no-replay", DEMO, "run.name=c"]
    assert main(command) == main([*command, "wandb.group=mine"]) == 0
    assert len(lives.asked) == 2, "what W&B is told makes no other life"


def test_invalid_counts_give_one_line_errors(capsys):
    assert main(["ablate", "--seeds", "0", DEMO]) == 2
    assert capsys.readouterr().err == "sleep-rl: --seeds: at least 1, got 0\n"


def test_kinds_of_deeper_questions_are_columns(tmp_path):
    folders = []
    for seed, reversed_ in ((0, 0.5), (1, 1.0)):
        folder = tmp_path / f"r{seed}"
        folder.mkdir()
        record = {
            "t": 1,
            "kind": "evaluate",
            "after": "night 1",
            "method": "sleep",
            "open_book": None,
            "row": {"known": 1.0, "day1": 0.5},
            "deeper": {"reversed": reversed_},
            "n": {"known": 4, "day1": 8, "reversed": 6},
        }
        (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        folders.append(folder)
    plain = {**record, "row": {"known": 1.0, "day1": 0.5}, "deeper": {}}
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "metrics.jsonl").write_text(json.dumps(plain) + "\n")
    lines = ablate.table({"whole": folders, "no-dreaming": [tmp_path / "p"]}, {}).splitlines()
    low, high = wilson_interval(0.75, 12)
    assert (
        "reversed" in lines[0]
        and f"0.750 [{low:.3f}, {high:.3f}]" in lines[1]
        and lines[2].split()[-1] == "-"
    )
