"""Loading of configs: every error is one line with what, allowed, got and where."""

import json
import random
from pathlib import Path

import pytest
import yaml

from sleep_rl.config.engine_options import CPU_ENGINE
from sleep_rl.config.loader import describe, dump, keys, load
from sleep_rl.config.schema import Config, threads_on
from sleep_rl.config.validation import check
from sleep_rl.contracts.errors import InputError
from tests.fakes.configs import changed, toy

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))

KEYS = """
run: name dir cache seed checkpoint_steps
task: name days order_seed base_text stop
task.world: people_per_day known_people deep
task.documents: path questions known piece_tokens max_new_tokens
task.classify: path classes_per_day examples_per_document pages_per_example test_per_class
task.squad: path passages_per_day judge_endpoint judge_model
task.arc: path puzzles_per_day
task.custom: target options
model: base teachers format dtype chunks experts d_low top_k memory_layers
wake: lr
sleep: steps epochs steps_per_round lag batch lr warmup on_full expansion reset
generation: samples kinds min_gain answers other_form temperature min_p min_confidence
replay: share samples
rehearsal: share instead samples prompts unconditional_prompts min_confidence temperature priority
reading: rows synthetic_documents
imitation: group_size prefix importance_cap
objective: on_policy off_policy_first alpha divergence beta hard_share mean prompt_weight
dream: rounds tasks curriculum dreams_per_task keep_top keep_random importance novelty temperature
dream: max_tokens steps
dream.copies: lr epochs rank alpha seeds
dream.policy: init lr epochs batch
checks: logprob_gap probe
reward: gamma z0 semantic target options model threshold template timeout_s workers gpus
rollouts: workers cpus gpus tensor_parallel engine
learners: world_size cpus gpus threads zero_stage pass_tokens gradient_checkpointing grad_clip
critics: workers gpus copies_per_pass engine
cluster: backend address start_timeout_s call_timeout_s wait_for_nodes_s gpu_gb restarts
evaluate: questions contexts max_drop max_drift probes
baselines: run steps lr
wandb: mode project group artifacts
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write files to a temporary folder and return their names relative to it."""
    monkeypatch.chdir(tmp_path)

    def to(text: str | bytes = "run: {name: t}", name: str = "c.yaml") -> str:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    return to


def refusal(path: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(path, overrides)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_list_of_keys():
    golden = [
        f"{section}.{key}"
        for section, _, names in (line.partition(": ") for line in KEYS.strip().splitlines())
        for key in names.split()
    ]
    assert list(keys()) == golden


def test_describe_has_every_key_with_default_and_meaning():
    text = describe()
    assert all(f"{key} = " in text for key in keys())
    assert (
        "replay.share = 0.5\n    Share of self-replay among the sequences of a batch, also where "
        "dreams are learned. Allowed: a number from 0 to 1." in text
    )
    assert "learners.zero_stage = 1\n    DeepSpeed ZeRO stage. Allowed: one of 0, 1, 2, 3." in text


def test_memory_layers_are_all_or_a_number(write):
    for text, value, first in (("all", "all", 0), ("0", 0, 0), ("12", 12, 12)):
        model = load(write(), [f"model.memory_layers={text}"]).model
        assert (model.memory_layers, model.first_layer) == (value, first)
    for text, got in (("upper", "'upper'"), ("-1", "-1"), ("1.5", "1.5"), ("null", "null")):
        assert refusal(write(), f"model.memory_layers={text}") == (
            f"command line: model.memory_layers: expected all or an integer >= 0, got {got}"
        )
    assert "model.memory_layers = 'all'\n" in describe()
    assert "Allowed: all or an integer >= 0." in describe()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_presets_load_and_begin_with_their_command(path):
    load(str(path))
    verb = "drill" if path.stem == "drill" else "run"
    assert path.read_text().startswith(f"# sleep-rl {verb} configs/{path.name}")


def test_values_of_presets():
    demo, mixed = (load(str(p)) for p in map(CONFIGS[0].with_name, ("demo.yaml", "gkd_mixed.yaml")))
    objective = Config().objective
    assert (objective.on_policy, objective.alpha, objective.divergence) == (1.0, 0.5, "forward_kl")
    for config, name in ((demo, "demo"), (mixed, "gkd_mixed")):
        named = {"name": name, "checkpoint_steps": 300}
        assert config == toy(run=named, objective={"on_policy": 0.5})


def test_paper_defaults():
    sleep = Config().sleep
    model = Config().model
    assert (sleep.lr, sleep.batch, sleep.steps, model.d_low) == (5e-6, 32, 100, 64)
    assert (model.experts, model.dtype, Config().rollouts.engine) == (5, "bfloat16", {})


def included(path):
    """Return the preset and all presets that it includes, directly or indirectly."""
    names = yaml.safe_load(path.read_text()).get("include", [])
    return {path.stem}.union(*(included(path.parent / name) for name in names))


def test_gpu_presets_have_no_cpu_or_toy_values():
    on_gpu = set()
    for path in CONFIGS:
        config = load(str(path))
        if config.rollouts.gpus == 0:
            assert config.rollout_engine == {**CPU_ENGINE, **config.rollouts.engine}, path
            continue
        on_gpu.add(path.stem)
        engines = [config.rollout_engine, config.critic_engine] if config.critics.gpus else []
        for engine in (config.rollout_engine, *engines):
            assert not {"enforce_eager", "block_size", "max_num_seqs"} & engine.keys(), path
        assert config.model.dtype == "bfloat16", path
        assert config.sleep.lr <= 5e-4 and config.baselines.lr <= 5e-4, path
        for name in included(path):
            part = load(str(path.with_name(f"{name}.yaml")))
            assert (part.model.dtype, part.learners.threads) == ("bfloat16", 1), (path, name)
    assert on_gpu == {p.stem for p in CONFIGS if "gpu" in p.stem} | {"arc", "squad_7b"}


def test_config_overrides_cpu_engine_options(write):
    on_cpu = load(write(), ["rollouts.engine.block_size=16"])
    assert on_cpu.rollout_engine == {**CPU_ENGINE, "block_size": 16}
    assert on_cpu.critic_engine == on_cpu.judge_engine == on_cpu.rollout_engine
    on_gpu = load(write(), ["rollouts.engine.block_size=16", "rollouts.gpus=1"])
    assert on_gpu.rollout_engine == {"block_size": 16}
    assert on_gpu.critic_engine == {**CPU_ENGINE, "block_size": 16}


def test_dependent_defaults(write):
    for overrides, gamma in (
        ([], 0.0),
        (["reward.semantic=encoder"], 0.5),
        (["reward.semantic=judge", "reward.gamma=0"], 0.0),
    ):
        assert load(write(), overrides).gamma == gamma
    assert (
        load(write(), ["model.dtype=float32"]).probe_tolerance == 1e-3
        and load(write(), []).probe_tolerance == 1.5
    )
    assert load(write(), ["model.dtype=bfloat16", "checks.probe=0.1"]).probe_tolerance == 0.1


@pytest.mark.parametrize(
    "template", ["{student} only", "{student} {teacher} {other}", "{student} {teacher} {", "{} {}"]
)
def test_judge_template_needs_both_fields(write, template):
    with pytest.raises(
        InputError,
        match=r"reward.template: {student} and {teacher} are its fields, both needed, got",
    ):
        load(write(), ["reward.semantic=judge", f"reward.template={json.dumps(template)}"])


VALUES = [
    ("sleep.steps=0", "sleep.steps: expected an integer >= 1, got 0"),
    ("sleep.steps=1.0", "sleep.steps: expected an integer >= 1, got 1.0"),
    ("sleep.steps=true", "sleep.steps: expected an integer >= 1, got true"),
    ("sleep.steps='3'", "sleep.steps: expected an integer >= 1, got '3'"),
    ("sleep.steps=010", "sleep.steps: expected an integer >= 1, got '010'"),
    ("sleep.steps=null", "sleep.steps: expected an integer >= 1, got null"),
    ("sleep.steps.more=3", "sleep.steps: expected an integer >= 1, got {'more': 3}"),
    ("sleep.lr=true", "sleep.lr: expected a number >= 0, got true"),
    ("sleep.lr=.nan", "sleep.lr: expected a number >= 0, got nan"),
    ("sleep.lr=1e999", "sleep.lr: expected a number >= 0, got inf"),
    ("imitation.importance_cap=0", "imitation.importance_cap: expected a number > 0, got 0"),
    ("replay.share=1.5", "replay.share: expected a number from 0 to 1, got 1.5"),
    ("sleep.reset=1", "sleep.reset: expected true or false, got 1"),
    (
        "task.name=wrold",
        "task.name: expected one of world, documents, classify, squad, arc, custom, got 'wrold'",
    ),
    ("learners.zero_stage=true", "learners.zero_stage: expected one of 0, 1, 2, 3, got true"),
    ("run.dir=''", "run.dir: expected text, got ''"),
    ("evaluate.questions=0", "evaluate.questions: expected an integer >= 1 or null, got 0"),
    ("sleep=3", "sleep: expected a mapping of keys, got 3"),
    ("sleep=", "sleep: expected a mapping of keys, got null"),
    ("sleep.stepps=3", "unknown key sleep.stepps; did you mean sleep.steps?"),
    ("slep.steps=3", "unknown key slep; did you mean sleep?"),
    ("steps=3", "unknown key steps; did you mean sleep.steps?"),
    ("sleep.z0=3", "unknown key sleep.z0; did you mean reward.z0?"),
    ("task.world.dys=3", "unknown key task.world.dys; did you mean task.days?"),
    ("task.world.days=3", "unknown key task.world.days; did you mean task.days?"),
    (
        "task.squad.max_dream_tokens=9",
        "unknown key task.squad.max_dream_tokens; did you mean dream.max_tokens?",
    ),
    ("dream.replay_share=0", "unknown key dream.replay_share; did you mean replay.share?"),
    ("reward.cpus=1", "unknown key reward.cpus; did you mean reward.gpus?"),
    ("rollouts.engine=3", "rollouts.engine: expected a mapping, got 3"),
    (
        "rollouts.engine.model=x",
        "rollouts.engine.model: cannot be set here, use model.base; got 'x'",
    ),
    (
        "rollouts.engine.logprobs_mode=x",
        "rollouts.engine.logprobs_mode: cannot be set here, the program sets it itself; got 'x'",
    ),
    (
        "rollouts.engine.a.b=[.inf]",
        "rollouts.engine.a: expected finite numbers, text, and lists "
        "and mappings of them, nested at most 8 times, got {'b': [inf]}",
    ),
    (
        "rollouts.engine.max_model_len=1e3",
        "rollouts.engine.max_model_len: expected an integer >= 1, got 1000.0",
    ),
    ("sleep.steps", "expected section.key=value, got 'sleep.steps'"),
    ("=3", "expected section.key=value, got '=3'"),
    ("sleep..steps=3", "expected section.key=value, got 'sleep..steps=3'"),
    (
        "sleep.steps=[",
        "sleep.steps: line 1: not valid YAML: expected the node content, but found '<stream end>'",
    ),
]


@pytest.mark.parametrize(("override", "line"), VALUES, ids=[override for override, _ in VALUES])
def test_invalid_value_gives_one_line_error(write, override, line):
    assert refusal(write(), override) == f"command line: {line}"


@pytest.mark.parametrize(
    "name", ["..", ".", "a/b", "a\\b", "../x", "a b", "-x", "", "x" * 101, "a\0b", "a\nb"]
)
def test_run_name_cannot_leave_its_folder(write, name):
    assert "run.name: expected" in refusal(
        write(), f"run.name={name.encode('unicode_escape').decode()!r}"
    )


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


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
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


def test_days_default_to_the_task(write):
    def nights(name):
        return load(write(), [f"task.name={name}"]).nights

    own = {name: nights(name) for name in ("world", "classify", "squad", "arc", "documents")}
    assert own == {"world": 3, "classify": 3, "squad": 2, "arc": 1, "documents": None}
    assert load(write(), ["task.name=squad", "task.days=5", "model.experts=6"]).nights == 5


@pytest.mark.parametrize(
    "overrides,line",
    [
        (
            ["generation.kinds={question: many}"],
            "generation.kinds.question: texts per unit, a number from 0 to 1000 or null, got "
            "'many'",
        ),
        (
            ["generation.kinds={question: -1}"],
            "generation.kinds.question: texts per unit, a number from 0 to 1000 or null, got -1",
        ),
        (
            ["task.name=documents", "task.days=3"],
            "task.days: null with task documents (only world, classify, squad, arc take a value), "
            "got 3",
        ),
        (["task.stop=[a]"], "task.stop: [] with a task that has a small base of its own"),
        (
            ["task.name=documents", "model.base=x", "task.stop=[a, '']"],
            "task.stop: a list of strings that are not empty, got ['a', '']",
        ),
        (["task.order_seed=3"], "task.order_seed: null with task world (only classify, squad"),
        (["task.name=arc", "task.base_text=x"], "task.base_text: null with task arc (only "),
        (["dream.max_tokens=64"], "dream.max_tokens: null with task world (only squad, arc take"),
    ],
)
def test_key_of_other_tasks_is_refused(write, overrides, line):
    assert line in refusal(write(), *overrides)


@pytest.mark.parametrize(
    "prefix",
    ["[]", "[0.1]", "[0.1, 0.2, 0.3]", "[-0.1, 0.5]", "[0.5, 1.1]", "[a, b]", "[false, 1]"],
)
def test_prefix_must_be_two_shares(write, prefix):
    line = "imitation.prefix: two shares from 0 to 1, the shortest and the longest, got "
    assert line in refusal(write(), f"imitation.prefix={prefix}")
    assert load(write(), ["imitation.prefix=[0, 1]"]).imitation.prefix == [0, 1]


def test_cpu_worker_has_one_thread_per_reserved_cpu():
    assert [threads_on(cpus) for cpus in (0, 0.5, 1, 1.9, 4)] == [1, 1, 1, 1, 4]


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


def life(days, **model):
    return toy(model=model, task={"days": days})


def test_levels_need_enough_experts():
    config = life(27, chunks=[1, 3, 9], experts=3)
    with pytest.raises(
        InputError,
        match=r"model.experts: at least 9, which level 3 needs until it is "
        r"reset .* got 3",
    ):
        check(config)
    check(life(10, chunks=[1, 3, 9], experts=3))
    check(changed(config, sleep={"on_full": "merge"}))
    kept = changed(life(10, chunks=[1, 3, 9], experts=3), sleep={"reset": False})
    with pytest.raises(InputError, match=r"model.experts: at least 10, which level 1 needs"):
        check(kept)


@pytest.mark.parametrize("chunks", [[], [0], [2, 3], [2, 2], [1.5], [True], ["1"]])
def test_chunk_lengths_must_be_growing_multiples(chunks):
    with pytest.raises(
        InputError, match=r"model.chunks: whole numbers of nights, each a larger multiple"
    ):
        check(life(1, chunks=chunks))


@pytest.mark.parametrize(
    "overrides,line",
    [
        (["task.name=classify"], "dream.rounds: 0 with task classify, which has no tau, got 1"),
        ([], "task.world.deep: true for dreaming, got false"),
        (
            ["task.world.deep=true", "replay.share=1"],
            "replay.share: below 1 with dream.rounds, or no dream is learned, got 1",
        ),
        (
            ["task.world.deep=true", "objective.alpha=0"],
            "objective.alpha: above 0 with dream.rounds, or no dream is learned, got 0",
        ),
        (
            ["task.world.deep=true", "dream.keep_top=15"],
            "dream.keep_top + dream.keep_random: at most dream.dreams_per_task = 15, got 16",
        ),
        (
            ["task.world.deep=true", "learners.zero_stage=3", "learners.world_size=2"],
            "learners.zero_stage: at most 2 on several ranks",
        ),
        (
            [
                "task.world.deep=true",
                "critics.gpus=1",
                "rollouts.engine.kv_cache_memory_bytes=null",
            ],
            "critics.engine.kv_cache_memory_bytes: a",
        ),
        (["critics.engine.model=x"], "critics.engine.model: cannot be set here"),
    ],
)
def test_requirements_of_dreaming(write, overrides, line):
    assert line in refusal(write(), "dream.rounds=1", "model.experts=6", *overrides)


@pytest.mark.parametrize(
    "gpus,parallel,right",
    [
        (0, 1, True),
        (0.5, 1, True),
        (1, 1, True),
        (2, 2, True),
        (2, 1, False),
        (0, 2, False),
        (1.5, 1, False),
    ],
)
def test_tensor_parallel_size_equals_gpus(write, gpus, parallel, right):
    keys = [f"rollouts.gpus={gpus}", f"rollouts.tensor_parallel={parallel}"]
    if right:
        assert load(write(), keys).rollouts.tensor_parallel == parallel
    else:
        assert refusal(write(), *keys).endswith(
            "rollouts.tensor_parallel: as many as rollouts.gpus where either is above 1, got "
            f"{parallel} with {gpus:g}"
        )


def test_a_hard_share_needs_rows_on_the_teachers_own_sequences(write):
    why = (
        "c.yaml: objective.hard_share: 0 without off-policy rows, i.e. with objective.on_policy 1 "
        "and off_policy_first 0, got 0.5"
    )
    assert refusal(write(), "objective.hard_share=0.5", "objective.on_policy=1") == why
    for other in ("objective.on_policy=0.9", "objective.off_policy_first=0.1"):
        args = ["objective.on_policy=1", "objective.hard_share=0.5", other]
        assert load(write(), args).objective.hard_share == 0.5


def test_gradient_checkpointing_is_refused_with_zero_3_on_several_ranks(write):
    keys = ["learners.gradient_checkpointing=true", "learners.zero_stage=3"]
    assert load(write(), keys).learners.gradient_checkpointing
    assert refusal(write(), *keys, "learners.world_size=2").endswith(
        "learners.gradient_checkpointing: false with ZeRO stage 3 on several ranks, got true"
    )
