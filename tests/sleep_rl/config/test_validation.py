"""Keys that depend on each other: what is refused together."""

import json

import pytest

from sleep_rl.config.loader import load
from sleep_rl.config.validation import check
from sleep_rl.contracts.errors import InputError
from tests.fakes.configs import changed, refusal, toy


@pytest.mark.parametrize(
    "template", ["{student} only", "{student} {teacher} {other}", "{student} {teacher} {", "{} {}"]
)
def test_judge_template_needs_both_fields(write, template):
    with pytest.raises(
        InputError,
        match=r"reward.template: {student} and {teacher} are its fields, both needed, got",
    ):
        load(write(), ["reward.semantic=judge", f"reward.template={json.dumps(template)}"])


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
