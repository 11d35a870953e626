"""Task `documents`, and runs of it that add a day each to one life."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from sleep_rl.cli.main import main
from sleep_rl.config.loader import load
from sleep_rl.contracts.errors import InputError
from sleep_rl.journal.journal import read
from sleep_rl.plan.plan import plan
from sleep_rl.tasks.documents.task import Documents, ingestion
from sleep_rl.tasks.registry import make_task
from tests.fakes.configs import changed, toy
from tests.fakes.processes import DIFFERENT, LIMIT_S, command, kill_after

ROOT = Path(__file__).parents[4]
EXAMPLE = ROOT / "configs" / "documents"


def test_small_model_reads_documents_of_its_vocabulary():
    config = load(
        str(ROOT / "configs" / "documents_world.yaml"), [f"task.documents.path={EXAMPLE}"]
    )
    task = make_task(config)
    [day] = task.days()
    assert [d.id for d in day.documents] == [
        "day1/ivo-keller.txt",
        "day1/mira-berg.txt",
        "day1/people.md",
        "day1/people.md/2",
    ]
    assert day.documents[1].text == (
        "mira berg lives in lima . mira berg became a pilot . mira "
        "berg eats fresh sushi . mira berg "
        "owns a gecko ."
    )
    question = day.questions[0]
    assert (question.prompt, question.answer, question.document) == (
        "Q : where does mira berg live ? A :",
        "lima",
        "day1/mira-berg.txt",
    )
    assert (
        task.grade(question, "lima") == 1
        and task.grade(question, "oslo") == 0
        and task.grade(question, "") == 0
    )
    assert len(task.known()) == 400  # what the small model knew before


def test_language_model_reads_documents_unchanged(tmp_path):
    (tmp_path / "Ä.md").write_text("# Title\n\nThe Kaiser had 3 dogs.")
    (tmp_path / "questions.jsonl").write_text(
        '{"question": "How many dogs?", "answer": "three dogs"}'
    )
    (tmp_path / "known.txt").write_text('{"question": "2+2?", "answer": "4"}')
    task = Documents(
        str(tmp_path / "Ä.md"),
        str(tmp_path / "questions.jsonl"),
        str(tmp_path / "known.txt"),
        piece_tokens=6,
    )
    [day] = task.days()
    assert [(d.title, d.text) for d in day.documents] == [
        ("Title", "Title, part 1 of 2"),
        ("Title", "Title, part 2 of 2\n\nThe Kaiser had 3 dogs."),
    ]
    assert day.questions[0].prompt == "How many dogs?" and day.questions[0].document == ""
    assert (
        task.grade(day.questions[0], " Three dogs.\nQuestion: more?") == 1
        and task.grade(day.questions[0], "dogs") == 0
    )
    assert [q.prompt for q in task.known()] == ["2+2?"]
    assert [t.completion for t in task.joint_texts()] == [" 4", " three dogs"]
    with pytest.raises(InputError, match=r"model.base: a language model is needed, got null"):
        task.base_checkpoint("", 0, None)


@pytest.mark.parametrize(
    "keys, line",
    [
        (
            ["task.documents.path=/nowhere"],
            "task.documents.path: a folder or file of documents, a datasets "
            "folder or a hub name, got /nowhere",
        ),
        (
            ["task.documents.questions=/nowhere.jsonl"],
            "task.documents.questions: /nowhere.jsonl: cannot be read (No such file",
        ),
        (["dream.rounds=1"], "dream.rounds: 0 with task documents, which has no tau"),
        (
            ["task.path=x"],
            "command line: unknown key task.path; did you mean task.documents.path?",
        ),
        (
            [f"task.documents.path={ROOT / 'README.md'}"],
            "task.documents.path: the small model of the demo "
            "knows the 177 words of its world only",
        ),
    ],
)
def test_invalid_input_gives_one_line_error(capsys, monkeypatch, keys, line):
    monkeypatch.chdir(ROOT)
    assert main(["plan", "configs/documents_world.yaml", *keys]) == 2
    printed = capsys.readouterr()
    assert line in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_plan_counts_pieces(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(ROOT)
    (tmp_path / "long.txt").write_text("word. " * 3000)
    keys = [
        f"task.documents.path={tmp_path}",
        "model.base=Qwen/Qwen3-1.7B",
        "rollouts.engine.max_model_len=256",
        "rollouts.engine.kv_cache_memory_bytes=8589934592",
        "generation.kinds={question: 0, reversed: 0, complete: 0, rephrase: 60, neighbour: 0}",
    ]
    found = plan(load("configs/documents_world.yaml", keys))
    assert found.written == 40 * 60  # 6000 words and marks in pieces of 256 - 96 - 8
    assert found.tokens == 256


def living(folder, documents, *keys):
    return command(
        "run",
        "configs/documents_world.yaml",
        f"task.documents.path={documents}",
        f"run.dir={folder}",
        "cluster.backend=local",
        "sleep.steps=4",
        "sleep.steps_per_round=2",
        "sleep.batch=8",
        "generation.samples=4",
        "replay.samples=16",
        "rehearsal.samples=8",
        "rollouts.workers=1",
        "evaluate.questions=8",
        *keys,
    )


def lines(folder):
    return [
        {k: v for k, v in r.items() if k not in DIFFERENT} for r in read(folder / "metrics.jsonl")
    ]


@pytest.mark.stack
def test_second_run_is_the_next_day(tmp_path):
    documents = tmp_path / "documents"
    life = tmp_path / "runs" / "documents"
    shutil.copytree(EXAMPLE, documents)
    (documents / "scan.docx").write_bytes(b"damaged")
    left_out = {"scan.docx": "no readable docx file (File is not a zip file)"}
    first = subprocess.run(**living(tmp_path / "runs", documents), timeout=LIMIT_S)
    assert f"{documents}: scan.docx was left out: {left_out['scan.docx']}" in first.stdout
    assert [day.left_out for day in ingestion.read(life)] == [left_out]
    assert (
        first.returncode == 0
        and "day 1: 3 new and 0 changed documents in 4 pieces, 8 questions" in first.stdout
    ), first.stdout
    memory = (life / "memory/night-1/memory.safetensors").read_bytes()
    wandb = json.loads((life / "run.json").read_text())["wandb"]
    idle = subprocess.run(**living(tmp_path / "runs", documents), timeout=LIMIT_S)
    assert idle.returncode == 0 and "is new since day 1; nothing to do" in idle.stdout

    saved_anew = (documents / "people.md").read_text().replace("\n", "\r\n")
    (documents / "people.md").write_bytes(f"{saved_anew}\r\n".encode())
    idle = subprocess.run(**living(tmp_path / "runs", documents), timeout=LIMIT_S)
    assert idle.returncode == 0 and "is new since day 1; nothing to do" in idle.stdout

    (documents / "mira-berg.txt").write_text("Mira Berg lives in Rome. Mira Berg became a pilot.")
    (documents / "new.txt").write_text("Ada Olsen keeps a frog. Ada Olsen moved to Boston.")
    other = subprocess.run(**living(tmp_path / "runs", documents, "sleep.lr=0.1"), timeout=LIMIT_S)
    assert (
        other.returncode == 2
        and "the next day needs the config of the earlier ones, but sleep.lr changed"
        in other.stdout
    )
    second = subprocess.run(**living(tmp_path / "runs", documents), timeout=LIMIT_S)
    assert (
        second.returncode == 0
        and "day 2: 1 new and 1 changed documents in 2 pieces, 2 questions" in second.stdout
    ), second.stdout
    # the first night was not lived again
    assert (life / "memory/night-1/memory.safetensors").read_bytes() == memory
    assert (life / "memory/night-2/memory.safetensors").read_bytes() != memory
    assert json.loads((life / "run.json").read_text())["wandb"] == wandb
    records = lines(life)
    assert [r["night"] for r in records if r["kind"] == "night"] == [1, 2]
    rows = [sorted(r["row"]) for r in records if r["kind"] == "evaluate" and r["row"]]
    assert rows == [["known"], ["day1", "known"], ["day1", "day2", "known"]]
    assert [r["kind"] for r in records].count("run") == 1 and records[-1]["status"] == "ok"
    assert "day2" in (life / "report.html").read_text()
    [wakes] = [[r["step"] for r in records if r["kind"] == "wake"]]
    assert wakes == [4, 2]  # only what was new


@pytest.mark.slow
@pytest.mark.stack
def test_interrupted_next_day_resumes_to_the_same_result(tmp_path):
    lives = {}
    for name in ("whole", "cut"):
        documents = tmp_path / name / "documents"
        life = tmp_path / name / "runs" / "documents"
        shutil.copytree(EXAMPLE, documents)
        assert subprocess.run(**living(life.parent, documents), timeout=LIMIT_S).returncode == 0
        (documents / "new.txt").write_text("Ada Olsen keeps a frog. Ada Olsen moved to Boston.")
        if name == "cut":
            kill_after(
                subprocess.Popen(**living(life.parent, documents)),
                life / "metrics.jsonl",
                len(lines(life)) + 4,
            )
        again = subprocess.run(**living(life.parent, documents), timeout=LIMIT_S)
        assert again.returncode == 0, again.stdout
        lives[name] = lines(life), (life / "memory/night-2/memory.safetensors").read_bytes()
    assert lives["cut"] == lives["whole"]


def test_folder_without_run_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "letter.txt").write_text("mine")
    assert main(["run", "configs/documents_world.yaml", f"run.dir={tmp_path}"]) == 2
    assert "is not the folder of a run (run.json is missing)" in capsys.readouterr().err
    assert [f.name for f in (tmp_path / "documents").iterdir()] == ["letter.txt"]


def test_days_come_from_the_record(tmp_path):
    days = ingestion.next_day(
        (), [ingestion.Source("a.txt", "A fact.")], [], 9, lambda text: len(text.split())
    )
    ingestion.write(tmp_path, days)
    config = toy(model={"base": "somewhere"})
    task = make_task(changed(config, task={"name": "documents"}), record=str(tmp_path))
    assert [d.text for d in task.days()[0].documents] == ["a\n\nA fact."] and task.known() == ()
    with pytest.raises(InputError, match=r"expected the record of 2 ingested days, got 1"):
        make_task(changed(config, task={"name": "documents"}), record=str(tmp_path), days=2)


def test_expert_capacity_is_checked_for_the_days_so_far(tmp_path):
    days = ()
    for name in "ab":
        days = ingestion.next_day(
            days, [ingestion.Source(name, f"A fact {name}.")], [], 9, lambda text: len(text.split())
        )
    ingestion.write(tmp_path, days)
    config = toy(
        model={"base": "somewhere", "experts": 1},
        sleep={"reset": False},
        task={"name": "documents"},
    )
    assert len(make_task(config, record=str(tmp_path), days=1).days()) == 1
    with pytest.raises(
        InputError, match=r"model.experts: at least 2, which level 1 needs .* 2 nights"
    ):
        make_task(config, record=str(tmp_path))
