"""Loading of configs: every error is one line with what, allowed, got and where."""

import random

import pytest
import yaml

from sleep_rl.config.loader import dump, keys, load
from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import InputError
from tests.fakes.configs import PRESETS, refusal, toy

FILES = [
    (b"", "c.yaml: expected a mapping of sections to keys, got an empty file"),
    (b"# only a comment", "c.yaml: expected a mapping of sections to keys, got an empty file"),
    (b"[1, 2]", "c.yaml: expected a mapping of sections to keys, got [1, 2]"),
    (b"run: {name: \xff}", "c.yaml: expected UTF-8 text, got another encoding at byte 12"),
    (b"sleep:\n  steps: 1\n  steps: 2", "c.yaml: line 3: not valid YAML: duplicate key steps"),
    (b"sleep: {}\nsleep: {}", "c.yaml: line 2: not valid YAML: duplicate key sleep"),
    (
        b"sleep: {steps: 3",
        "c.yaml: line 1: not valid YAML: expected ',' or '}', but got '<stream end>'",
    ),
    (b"a: &x 1\nb: *x", "c.yaml: line 1: not valid YAML: anchors and aliases are not supported"),
    (b"a: !!python/name:os.system x", "c.yaml: line 1: not valid YAML: tags are not supported"),
    (b"1: 2", "c.yaml: line 1: not valid YAML: keys must be text"),
    (b"--- {}\n--- {}", "c.yaml: line 2: not valid YAML: but found another document"),
    (b"a: " + b"[" * 800, "c.yaml: line 1: not valid YAML: nested too deeply"),
    (b"sleep: {stepps: 3}", "c.yaml: unknown key sleep.stepps; did you mean sleep.steps?"),
    (
        b"imitation: {prefix: [0.9, 0.7]}",
        "c.yaml: imitation.prefix: two shares from 0 to 1, the shortest and the longest, got "
        "[0.9, 0.7]",
    ),
    (b"include: other.yaml", "c.yaml: include: expected a list of file names, got 'other.yaml'"),
    (b"include: [none.yaml]", "c.yaml: include: cannot read none.yaml: No such file or directory"),
    (b"include: [c.yaml]", "c.yaml: include: c.yaml -> c.yaml is a cycle"),
]


@pytest.mark.parametrize(("raw", "line"), FILES, ids=[line[-30:] for _, line in FILES])
def test_invalid_file_gives_one_line_error(write, raw, line):
    assert refusal(write(raw)) == line


def test_unreadable_file_gives_one_line_error(write, tmp_path):
    write()
    assert refusal("none.yaml") == "cannot read none.yaml: No such file or directory"
    assert refusal(str(tmp_path)) == f"cannot read {tmp_path}: Is a directory"
    assert refusal("a\0b") == "cannot read a\0b: embedded null byte"


def test_later_include_wins(write):
    write("sleep: {steps: 1, batch: 8, lr: 0.5}", "presets/a.yaml")
    write("include: [a.yaml]\nsleep: {steps: 2, batch: 9}", "presets/b.yaml")
    config = load(
        write("include: [presets/a.yaml, presets/b.yaml]\nsleep: {steps: 3}"),
        ["sleep.lr=1", "sleep.lr=2"],
    )
    assert (config.sleep.steps, config.sleep.batch, config.sleep.lr) == (3, 9, 2.0)


def test_error_names_included_file(write):
    write("sleep: {stepps: 1}", "presets/a.yaml")
    path = write("include: [presets/a.yaml]")
    assert refusal(path) == "presets/a.yaml: unknown key sleep.stepps; did you mean sleep.steps?"
    write("include: [../c.yaml]", "presets/a.yaml")
    assert (
        refusal(path)
        == "presets/a.yaml: include: c.yaml -> presets/a.yaml -> presets/../c.yaml is a cycle"
    )


def test_overrides_are_yaml_1_2(write):
    config = load(
        write(),
        [
            "sleep.lr=1e-3",
            "reward.gamma=0",
            "task.days=2",
            "wandb.mode=off",
            "model.base=",
            "run.name=2026-11-22",
            "sleep.reset=false",
            "sleep={steps: 7}",
        ],
    )
    assert (config.sleep.lr, config.task.days, config.nights) == (1e-3, 2, 2)
    assert type(config.reward.gamma) is float, "an integer is a number"
    assert (config.wandb.mode, config.model.base, config.run.name) == ("off", None, "2026-11-22")
    assert (config.sleep.reset, config.sleep.steps) == (False, 7)


def test_engine_options_are_merged_by_key(write):
    path = write("rollouts: {engine: {max_model_len: 512, kv_cache_memory_bytes: null}}")
    engine = load(path, ["rollouts.engine.compilation_config.level=0"]).rollouts.engine
    assert engine == {
        **toy().rollouts.engine,
        "max_model_len": 512,
        "kv_cache_memory_bytes": None,
        "compilation_config": {"level": 0},
    }
    assert "compilation_config" not in toy().rollouts.engine, "defaults are not shared"


def test_dump_round_trip(write):
    config = load(
        write(),
        [
            "sleep.lr=1e-5",
            "evaluate.questions=5",
            "rollouts.engine.max_num_seqs=8",
            "model.dtype=bfloat16",
        ],
    )
    assert load(write(yaml.safe_dump(dump(config)), "dump.yaml")) == config


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_dump_has_only_the_section_of_the_chosen_task(write, path):
    config = load(str(path))
    task = dump(config)["task"]
    sections = [name for name, value in task.items() if isinstance(value, dict)]
    assert sections == [config.task.name]
    assert {"name", "days", "order_seed", "base_text", "stop"} == task.keys() - set(sections)
    assert load(write(yaml.safe_dump(dump(config)), "dump.yaml")) == config


def test_dump_keeps_keys_set_for_other_tasks(write):
    config = load(write(), ["task.squad.path=mine.json", "task.arc.puzzles_per_day=11"])
    assert dump(config)["task"].keys() >= {"world", "squad"}
    assert not {"arc", "classify", "documents", "custom"} & dump(config)["task"].keys()
    assert load(write(yaml.safe_dump(dump(config)), "dump.yaml")) == config


JUNK = (
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    10**400,
    0.5,
    -2.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "3",
    "a\nb\u2028c",
    "world",
    [],
    [1],
    {},
    {"a": 1},
    {"days": 2},
    {"engine": {"seed": 1}},
)


def test_random_mutations_load_or_give_one_line_errors(write):
    rng = random.Random(0)
    outcomes = {"loaded": 0, "refused": 0}
    for _ in range(500):
        parts = rng.choice(keys()).split(".")[: rng.randint(1, 3)]
        if rng.random() < 0.3:
            parts[-1] = "".join(rng.choice("abst._\n\u2028é ") for _ in range(rng.randint(0, 8)))
        tree = rng.choice(JUNK)
        for part in reversed(parts):
            tree = {part: tree}
        path = write(yaml.safe_dump(tree, allow_unicode=rng.random() < 0.5))
        try:
            assert isinstance(load(path), Config)
            outcomes["loaded"] += 1
        except InputError as error:
            assert len(str(error).splitlines()) == 1
            outcomes["refused"] += 1
    assert outcomes["loaded"] > 20 and outcomes["refused"] > 100
