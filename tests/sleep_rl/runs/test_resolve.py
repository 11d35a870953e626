"""Which model a path names: a run, a night of it, or a checkpoint."""

import shutil

from sleep_rl.model import memory_folder
from sleep_rl.runs.resolve import ResolvedModel, nights, resolve_model
from tests.fakes.serving import sleep_once, slept_run


def test_a_run_resolves_to_its_newest_complete_night(tmp_path, base_checkpoint):
    run = slept_run(tmp_path / "run", base_checkpoint())
    assert resolve_model(str(run)) == ResolvedModel(str(run / "memory" / "night-1"), run, 1)
    for night in (10, 9):
        sleep_once(run, base_checkpoint(), night)
    for name in ("night-11-rejected", "night-12.writing-77", "night-x"):
        shutil.copytree(run / "memory" / "night-1", run / "memory" / name)
    shutil.copytree(run / "memory" / "night-1", run / "memory" / "night-13")
    (run / "memory" / "night-13" / memory_folder.MEMORY).unlink()
    assert list(nights(run)) == [1, 9, 10] and resolve_model(str(run)).night == 10
    assert resolve_model(str(run / "memory" / "night-9")) == ResolvedModel(
        str(run / "memory" / "night-9"), run, 9
    )
    assert resolve_model(str(run / "memory" / "night-11-rejected")).night is None
    assert (
        resolve_model(base_checkpoint()) == ResolvedModel(base_checkpoint())
        and resolve_model(str(run)).name == "run"
    )
    for part, night in (("model", 10), ("checkpoint", 0)):
        shutil.copytree(base_checkpoint(), run / part)
        assert resolve_model(str(run / part)) == ResolvedModel(str(run / part), run, night)
