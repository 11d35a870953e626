"""Keys of a config: which there are, with which defaults and values."""

import importlib
from dataclasses import fields

import pytest

from sleep_rl.config.engine_options import CPU_ENGINE
from sleep_rl.config.loader import describe, keys, load
from sleep_rl.config.schema import Config, threads_on
from sleep_rl.config.tasks import SECTIONS, TaskConfig
from tests.fakes.configs import refusal

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


def test_paper_defaults():
    sleep = Config().sleep
    model = Config().model
    assert (sleep.lr, sleep.batch, sleep.steps, model.d_low) == (5e-6, 32, 100, 64)
    assert (model.experts, model.dtype, Config().rollouts.engine) == (5, "bfloat16", {})


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


def test_config_overrides_cpu_engine_options(write):
    on_cpu = load(write(), ["rollouts.engine.block_size=16"])
    assert on_cpu.rollout_engine == {**CPU_ENGINE, "block_size": 16}
    assert on_cpu.critic_engine == on_cpu.judge_engine == on_cpu.rollout_engine
    on_gpu = load(write(), ["rollouts.engine.block_size=16", "rollouts.gpus=1"])
    assert on_gpu.rollout_engine == {"block_size": 16}
    assert on_gpu.critic_engine == {**CPU_ENGINE, "block_size": 16}


def test_days_default_to_the_task(write):
    def nights(name):
        return load(write(), [f"task.name={name}"]).nights

    own = {name: nights(name) for name in ("world", "classify", "squad", "arc", "documents")}
    assert own == {"world": 3, "classify": 3, "squad": 2, "arc": 1, "documents": None}
    assert load(write(), ["task.name=squad", "task.days=5", "model.experts=6"]).nights == 5


def test_cpu_worker_has_one_thread_per_reserved_cpu():
    assert [threads_on(cpus) for cpus in (0, 0.5, 1, 1.9, 4)] == [1, 1, 1, 1, 4]


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


def test_integers_are_at_most_what_a_float_can_count(write):
    most = 2**53
    assert load(write(), [f"rollouts.workers={most}"]).rollouts.workers == most
    assert refusal(write(), f"rollouts.workers={most + 1}") == (
        f"command line: rollouts.workers: an integer up to {most}, got {most + 1}"
    )
    assert refusal(write(), "rollouts.workers=0").endswith("expected an integer >= 1, got 0")


def test_every_task_has_its_section():
    sections = {f.name: f.default_factory for f in fields(TaskConfig) if f.name in SECTIONS}
    assert sections == SECTIONS
    assert type(TaskConfig("squad").section) is SECTIONS["squad"]
    for name, section in SECTIONS.items():
        if name == "custom":
            continue
        module, _, class_name = section.implementation.partition(":")
        assert getattr(importlib.import_module(module), class_name).name == name
