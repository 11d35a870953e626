"""Which methods of the learner are allowed in which state."""

import re

import pytest

from sleep_rl.contracts.errors import RunError
from sleep_rl.contracts.records import STUDENT, TEACHER
from tests.learners.twins import DOCUMENTS, ROWS

TEXTS = [((5, 6), (7, 8, 1)), ((5,), (9, 1))]
IDLE = "it is idle"
NIGHT = "a night is open"
DREAM = "it is dreaming"
NEEDS_IDLE = {
    "wake": lambda learner, path: learner.wake(DOCUMENTS[:1]),
    "open_night": lambda learner, path: learner.open_night(1),
    "activate_random_expert": lambda learner, path: learner.activate_random_expert(3),
    "gradient_gram": lambda learner, path: learner.gradient_gram(TEXTS, whole=True),
    "rebase_policy_expert": lambda learner, path: learner.rebase_policy_expert("start"),
    "save_state": lambda learner, path: learner.save_state("later"),
    "load_state": lambda learner, path: learner.load_state("start"),
    "load_teachers": lambda learner, path: learner.load_teachers([]),
    "unload_teachers": lambda learner, path: learner.unload_teachers(),
    "save_memory": lambda learner, path: learner.save_memory(path),
    "save_checkpoint": lambda learner, path: learner.save_checkpoint(path),
    "load_checkpoint": lambda learner, path: learner.load_checkpoint(path),
}
NEEDS_NIGHT = {
    "seed_step": lambda learner, path: learner.seed_step(ROWS, 0, 4),
    "sft_step": lambda learner, path: learner.sft_step(ROWS, 0, 4),
    "commit_night": lambda learner, path: learner.commit_night(),
    "save_progress": lambda learner, path: learner.save_progress(path),
    "restore_progress": lambda learner, path: learner.restore_progress(path, 1, 4),
}


def enter(learner, state):
    """Bring an idle learner into a state."""
    if state == NIGHT:
        learner.open_night(1)
    if state == DREAM:
        learner.activate_random_expert(3)


@pytest.fixture(scope="module")
def learner(worker):
    """Three ACTIVE experts and one FRESH, the state saved under "start"."""
    learner = worker(kind="dense")
    for level in learner.levels.values():
        level.set_slot_state(4, 0)
    learner.save_state("start")
    return learner


@pytest.mark.parametrize(
    "name,call,state,needed",
    [(n, c, s, "an idle learner") for n, c in NEEDS_IDLE.items() for s in (NIGHT, DREAM)]
    + [(n, c, s, "an open night") for n, c in NEEDS_NIGHT.items() for s in (IDLE, DREAM)]
    + [
        (
            "discard_night",
            lambda learner, path: learner.discard_night(),
            IDLE,
            "an open night or a dreaming state",
        )
    ],
)
def test_a_call_in_the_wrong_state_raises_and_changes_nothing(
    name, call, state, needed, learner, tmp_path
):
    enter(learner, state)
    before = [learner.export(view, 1, {}, view).manifest for view in (TEACHER, STUDENT)]
    text = f"learner: {name} needs {needed}, but {state}"
    with pytest.raises(RunError, match=f"^{re.escape(text)}$"):
        call(learner, str(tmp_path / "file"))
    after = [learner.export(view, 1, {}, view).manifest for view in (TEACHER, STUDENT)]
    assert after == before and not (tmp_path / "file").exists()
    if state != IDLE:
        learner.discard_night()


@pytest.mark.parametrize("state", [IDLE, NIGHT, DREAM])
def test_an_export_is_allowed_in_each_state(state, learner):
    enter(learner, state)
    assert learner.export(STUDENT, 1, {}, STUDENT).tensors
    if state != IDLE:
        learner.discard_night()


def test_an_idle_learner_writes_its_memory(learner, tmp_path):
    learner.save_memory(str(tmp_path / "memory"))
    assert (tmp_path / "memory" / "memory.json").is_file()


def test_every_method_of_the_contract_is_tested_here(learner):
    from sleep_rl.contracts.roles import Learner

    anywhere = {"export", "close"}
    contract = {name for name in dir(Learner) if not name.startswith("_")}
    assert contract == {*NEEDS_IDLE, *NEEDS_NIGHT, *anywhere, "discard_night"}


def test_the_learner_stays_idle_when_a_night_cannot_be_opened(worker):
    from sleep_rl.contracts.errors import InputError

    learner = worker()
    for _ in range(4):
        learner.open_night(1)
        learner.commit_night()
    with pytest.raises(InputError, match="all 4 experts are in use"):
        learner.open_night(1)
    learner.wake(DOCUMENTS[:1])
    learner.open_night(1, slot="reuse_newest")
    learner.seed_step(ROWS, 0, 4)
    learner.discard_night()
