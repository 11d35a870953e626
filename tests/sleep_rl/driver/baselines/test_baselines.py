"""Baselines by name: modules of a folder."""

import importlib
import math
import subprocess
import sys

import pytest

from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.contracts.records import TrainingText
from sleep_rl.driver.baselines import registry, sft
from sleep_rl.night.plan import CONTEXT, Shares
from sleep_rl.night.saved_data import load_data, save_data
from sleep_rl.night.sequences import NightData, Origin, TeacherSequence
from tests.fakes.configs import changed, toy
from tests.fakes.crew import (
    CONFIG,
    RESUMABLE,
    Killed,
    RecordingCrew,
    continue_life,
    live_life,
)
from tests.fakes.processes import LIMIT_S
from tests.fakes.reader import Purchases, reading_run

SELF_WRITTEN = "sft_self_written"


def test_every_module_is_a_baseline():
    assert registry.names() == ("joint", "sft", "sft_self_written")
    for name in registry.names():
        module = importlib.import_module(f"sleep_rl.driver.baselines.{name}")
        assert module.STEPS is None or module.STEPS > 0
        assert hasattr(module, "after_night") or hasattr(module, "after_life")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"run": ["ewc"]},
            r"^baselines\.run: some of joint, sft, sft_self_written, each once, got \['ewc'\]$",
        ),
        ({"run": ["sft", "sft"]}, r"^baselines\.run: .*each once"),
        (
            {"steps": {"sft": 0}},
            r"^baselines\.steps: joint, sft, sft_self_written, each with an integer >= 1, got "
            r"sft: 0$",
        ),
        ({"steps": {"ewc": 5}}, r"^baselines\.steps: .* got ewc: 5$"),
    ],
)
def test_invalid_name_or_steps_give_one_line_error(values, says):
    with pytest.raises(InputError, match=says):
        registry.check(toy(baselines=values))


def test_steps_default_to_the_module():
    config = toy(baselines={"run": ["sft", "joint"], "steps": {"sft": 5}})
    joint = importlib.import_module("sleep_rl.driver.baselines.joint")
    assert registry.planned_steps(config, 3) == {"sft": 15, "joint": joint.STEPS}


def test_steps_default_to_those_of_the_night():
    """For self-written texts always, for plain fine-tuning in natural language."""
    config = toy(baselines={"run": ["sft", SELF_WRITTEN], "steps": {}}, sleep={"steps": 7})
    assert registry.planned_steps(config, 3) == {"sft": 3 * sft.STEPS, SELF_WRITTEN: 21}
    assert registry.planned_steps(config, 3, natural=True) == {"sft": 21, SELF_WRITTEN: 21}
    assert registry.steps_of(config, SELF_WRITTEN, natural=True, night_steps=5) == 5


def test_self_written_texts_are_those_of_the_night_in_the_same_shares(tmp_path):
    config = changed(CONFIG, baselines={"run": [SELF_WRITTEN]}, objective={"on_policy": 0.0})
    crew, records = live_life(config, tmp_path, RecordingCrew)
    batches = crew.batches
    nights = len(batches["night"]) // config.sleep.steps
    assert nights == 4 and len(batches["baseline"]) == len(batches["night"])
    for night in range(nights):
        steps = slice(night * config.sleep.steps, (night + 1) * config.sleep.steps)
        of_night, of_baseline = (batches[which][steps] for which in ("night", "baseline"))
        shares = [[_shares(batch) for batch in part] for part in (of_night, of_baseline)]
        assert shares[0] == shares[1] and len(of_baseline[0]) > config.sleep.batch
        data = load_data(str(tmp_path), night + 1)
        everything = {
            (s.bare_T, s.sequence_T) for s in (*data.new, *data.unconditional, *data.rehearsed)
        }
        read = {(s.context_T, s.sequence_T) for s in data.new}
        trained = {(r.prompt_T, r.completion_T) for batch in of_baseline for r in batch}
        assert trained <= everything | read and trained & {
            (s.bare_T, s.sequence_T) for s in data.new
        }
    # from the base memory in the first night, then from the night before
    own = [tag for tag in crew.loaded if tag in (registry.BASE, SELF_WRITTEN)]
    assert own == [registry.BASE, *[SELF_WRITTEN] * (nights - 1)]
    rows = [r for r in records if r["kind"] == "evaluate" and r["method"] == SELF_WRITTEN]
    assert [r["after"] for r in rows] == [f"night {n + 1}" for n in range(nights)]


def test_a_night_of_few_sequences_has_fewer_steps_and_so_has_its_baseline(tmp_path):
    config = changed(
        CONFIG,
        baselines={"run": [SELF_WRITTEN]},
        objective={"on_policy": 0.0},
        sleep={"epochs": 0.5},
    )
    crew, records = live_life(config, tmp_path, RecordingCrew)
    nights = [r for r in records if r["kind"] == "night" and r["sender"] == CONTEXT]
    steps = [record["steps"] for record in nights]
    assert len(steps) == 4 and 0 < max(steps) < config.sleep.steps
    batches = crew.batches
    assert len(batches["night"]) == len(batches["baseline"]) == sum(steps)
    new = Shares.of(config, config.replay.share, 0.0).teacher_new
    for night in range(1, 5):
        epoch = len(load_data(str(tmp_path), night).new) / new
        assert steps[night - 1] == math.ceil(0.5 * epoch)


def _shares(batch):
    """Return the number of rows: all, of self-replay, with x in the loss, on a document."""
    new = [r for r in batch if not r.replay]
    return len(batch), len(new), sorted(r.x_length > 0 for r in batch)


def test_student_samples_are_replaced_by_the_teachers_sequences(tmp_path):
    config = changed(CONFIG, baselines={"run": [SELF_WRITTEN]}, objective={"on_policy": 1.0})
    crew, _ = live_life(config, tmp_path, RecordingCrew)
    rows = [row for batch in crew.batches["baseline"] for row in batch]
    assert len(rows) == 4 * config.sleep.steps * (config.sleep.batch + config.reading.rows)
    assert all(row.advantage is None and not row.behaviour_T for row in rows)


def test_a_baseline_resumes_with_the_data_of_its_night(tmp_path):
    config = changed(RESUMABLE, baselines={"run": [SELF_WRITTEN]})
    (tmp_path / "whole").mkdir()
    whole = continue_life(tmp_path / "whole", config=config)
    for at in (whole.calls - 8, whole.calls - 5, whole.calls - 2):  # in the last night's baseline
        folder = tmp_path / str(at)
        folder.mkdir()
        with pytest.raises(Killed):
            continue_life(folder, at, config)
        assert continue_life(folder, config=config).weights == whole.weights


def test_data_of_a_night_round_trips_and_a_missing_file_is_one_line(tmp_path):
    new = TeacherSequence(Origin.DOCUMENT, (1, 2, 3), (1,), (5, 6, 7), 1, answer_probability=0.5)
    replay = TeacherSequence(Origin.UNCONDITIONAL, (1,), (1,), (8, 9))
    data = NightData([new], [replay], [], [])
    save_data(str(tmp_path), 3, data)
    assert load_data(str(tmp_path), 3) == data
    with pytest.raises(
        RunError, match=r"night-4\.json: the sequences of night 4 .*first night on$"
    ):
        load_data(str(tmp_path), 4)


def test_plain_fine_tuning_in_natural_language_reads_the_raw_documents(tmp_path):
    """As many rows a step as the night, each a document and the token that ends documents."""

    class Office(Purchases):
        def sft_texts(self, day):
            return tuple(TrainingText("", document.text) for document in day.documents)

    config = toy(sleep={"batch": 4}, reading={"rows": 2})
    run = reading_run(tmp_path, config, task=Office())
    crew = RecordingCrew(run.codec)
    run.crew.learn = crew
    run.crew.push = lambda name, view: None
    day = run.task.days()[0]
    sft.after_night(run, day, 1, 3)
    batches = crew.batches["baseline"]
    assert [len(batch) for batch in batches] == [6, 6, 6]
    codec = run.codec
    texts = {
        codec.tokens.text(row.completion_T, special=True) for batch in batches for row in batch
    }
    end = codec.tokens.tokenizer.eos_token
    assert texts == {d.text + end for d in day.documents}


def test_planning_has_no_heavy_imports():
    code = (
        "import sys; from sleep_rl.driver.baselines import registry; import "
        "sleep_rl.driver.baselines.sft;"
        "print(sorted({'torch', 'transformers', 'ray', 'vllm'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.stdout == "[]\n", done.stderr
