"""`sleep-rl forget`: what it records and refuses."""

import json

import pytest

from cluster import documents_run
from sleep_rl.cli.main import main
from sleep_rl.runs import run_dir
from sleep_rl.tasks.documents import ingestion
from sleep_rl.tasks.registry import make_task
from tests.fakes.configs import toy
from tests.fakes.living import EXAMPLE, ingest


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run on the example's first day; `lived` has the arguments of `live_in_folder`."""

    def make(**sections):
        config = toy(
            **{"task": {"name": "documents", "days": None}, "sleep": {"reset": True}} | sections
        )
        folder = tmp_path / "run"
        folder.mkdir()
        ingestion.write(folder, ingest((), EXAMPLE / "day1"))
        task = (
            make_task(config, str(folder)) if config.task.name == "documents" else make_task(config)
        )
        run_dir.write(folder, config, task)
        return folder

    make.lived = []
    monkeypatch.setattr(
        documents_run, "live_in_folder", lambda *arguments: make.lived.append(arguments) or 0
    )
    return make


LANGUAGE_MODEL = {"model": {"base": "someone/some-model", "experts": 4}}


def test_a_document_is_forgotten_in_a_night_of_its_own(run, capsys):
    folder = run(**LANGUAGE_MODEL)
    assert main(["forget", str(folder), "people.md"]) == 0
    assert "day 2: 0 new and 0 changed documents in 0 pieces" in capsys.readouterr().out
    two = ingestion.read(folder)[1]
    assert list(two.forgotten) == ["people.md"] and two.documents == ()
    assert {q.kind for q in two.questions} == {"deleted"}
    assert json.loads((folder / "run.json").read_text())["days"] == 2
    [(setup, _, resumed)] = run.lived
    assert resumed and setup.folder == folder
    assert [s.name for s in setup.task.days()[1].superseded] == ["people.md"]
    # the night was interrupted: the same command continues it, with the same days
    assert main(["forget", str(folder), "people.md"]) == 0
    assert len(run.lived) == 2 and len(ingestion.read(folder)) == 2


def test_an_unknown_document_and_another_task_are_one_line(run, tmp_path, capsys):
    folder = run(**LANGUAGE_MODEL)
    assert main(["forget", str(folder), "peple.md"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "got 'peple.md'; did you mean people.md?" in error
    assert len(ingestion.read(folder)) == 1 and run.lived == []
    assert main(["forget", str(tmp_path / "nothing"), "a"]) == 2
    assert "expected the folder of a run" in capsys.readouterr().err


def test_a_task_without_documents_is_refused(run, capsys):
    folder = run(task={"name": "world"})
    assert main(["forget", str(folder), "people.md"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "forget needs a run of task documents" in error
