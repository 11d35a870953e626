"""The plan and the base model's shape: figures computed by hand, and invalid base models."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from sleep_rl.config.loader import load
from sleep_rl.contracts.errors import InputError
from sleep_rl.model import shape as shapes
from sleep_rl.model.families import FAMILIES
from sleep_rl.model.shape import PUBLISHED, TASK_BASES, base_shape, parse_shape
from sleep_rl.plan import checks
from sleep_rl.plan.plan import plan
from sleep_rl.plan.render import render
from sleep_rl.plan.sizes import Bytes, critic_bytes, expert_bytes, memory_bytes
from tests.fakes.small_shape import SMALL, SMALL_ARGS

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.usefixtures("nowhere")


@pytest.fixture
def checkpoint(tmp_path):
    """Return a function that writes a checkpoint folder with the small shape; arguments change its
    config.
    """

    def make(name: str = "base", **changes) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**SMALL, **changes}))
        (folder / "model.safetensors").touch()
        return folder

    return make


def config(*overrides: str, name: str = "demo"):
    return load(str(ROOT / "configs" / f"{name}.yaml"), overrides)


def refusal(*overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        plan(config(*overrides))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_sizes_of_a_small_shape(checkpoint):
    small = (f"model.base={checkpoint(max_position_embeddings=512)}", *SMALL_ARGS, "sleep.batch=6")
    p = plan(config(*small, "learners.pass_tokens=256"))
    # layer: q 64, o 64, k 32, v 32, MLP 3 * 8 * 16, two norms 16, q and k norms 8; then the last
    # norm, the embedding
    assert p.base.parameters == 2 * (64 + 64 + 32 + 32 + 384 + 16 + 8) + 8 + 80 == 1288
    # layer: a router row 8, A 2 * 2 * 8, B 2 * 8, in fp32, and 4 slot states
    assert p.push_bytes == 2 * ((8 + 32 + 16) * 4 + 4) == 456
    assert p.full_bytes == 1288 * 4 + 2 * 4 * ((8 + 32 + 16) * 4 + 1)
    assert (p.learner.base, p.learner.memory) == (5152, 1800)
    assert p.learner.optimizer == 2 * 56 * (12 + 4 + 4)
    kept = 4 * 64 * 2 * (17 * 8 + 3 * 16) * 4
    logits = 6 * 4 * 1024 * 10
    assert p.learner.activations == kept + logits
    assert (p.rollout.base, p.rollout.memory, p.rollout.cache) == (5152, 3600, 6400)
    assert p.cached_tokens == 6400 // (2 * 2 * 1 * 4 * 4) == 100
    # a sequence of 64 tokens at least, and at most the 6 sequences and the 4 reading rows
    for budget, tokens in ((256, 256), (8, 64), (10**6, 640)):
        assert plan(config(*small, f"learners.pass_tokens={budget}")).pass_tokens == tokens


def test_memory_in_the_upper_layers(checkpoint):
    """Of two layers the upper one."""
    base = f"model.base={checkpoint(max_position_embeddings=512)}"
    p = plan(config(base, *SMALL_ARGS, "sleep.batch=6", "model.memory_layers=1"))
    assert p.push_bytes == (8 + 32 + 16) * 4 + 4
    assert p.learner.memory == 4 * ((8 + 32 + 16) * 4 + 1) == p.rollout.memory / 2
    assert p.full_bytes == 1288 * 4 + p.learner.memory
    assert p.learner.optimizer == 56 * (12 + 4 + 4)
    saved = p.pass_tokens * (17 * 8 + 3 * 16) * 4
    assert p.learner.activations == saved + 6 * 4 * 1024 * 10
    assert "a base expert, d_low 2, in layers 1 to 1: 900 B" in render(p)
    # 6 FLOPs per learned token in all but the lower layer; in that 4 per sampled one
    s = p.config.sleep
    sampled = p.written + p.without_document + p.completions
    learned = 6 * s.batch * s.steps * (1288 - 600) + 4 * min(s.batch * s.steps, sampled) * 600
    seconds = p.tokens * (learned / 60e9 + 2 * 1288 * sampled / (2 * 18e9))
    assert p.seconds == pytest.approx(sum(c.steps for c in p.consolidations) / s.steps * seconds)


def test_memory_layers_must_be_layers_of_the_base(checkpoint, tmp_path):
    base = checkpoint()
    args = (*SMALL_ARGS, "model.memory_layers=2")
    assert refusal(f"model.base={base}", *args) == (
        "model.memory_layers: all, or at most 1, the last layer of the base model, got 2"
    )
    levels = [{"experts": 3, "d_low": 2, "top_k": 3, "first_layer": 1}]
    (tmp_path / "memory").mkdir()
    pointer = {"base": str(base), "memory_levels": levels}
    (tmp_path / "memory" / "memory.json").write_text(json.dumps(pointer))
    memory = f"model.base={tmp_path / 'memory'}"
    assert plan(config(memory, *SMALL_ARGS, "model.memory_layers=1")).base.memory == tuple(levels)
    assert "the config [{'experts': 3, 'd_low': 2, 'top_k': 3}]" in refusal(memory, *SMALL_ARGS)


def test_zero_stages_shard_the_optimizer(checkpoint):
    base = f"model.base={checkpoint()}"
    sizes = [
        plan(
            config(base, *SMALL_ARGS, "learners.world_size=8", f"learners.zero_stage={z}")
        ).learner.optimizer
        for z in (0, 1, 2, 3)
    ]
    assert sizes == [112 * 20, 112 * (1.5 + 8), 112 * (1.5 + 0.5 + 4), 112 * 2.5]


def test_samples_steps_and_actors_of_the_demo():
    fixed = (
        "sleep.steps=400",
        "sleep.steps_per_round=10",
        "generation.samples=60",
        "replay.samples=1000",
        "sleep.batch=40",
        "replay.share=0.5",
        "rehearsal.samples=300",
    )
    p = plan(config("reward.semantic=encoder", *fixed))
    assert (p.steps, p.rounds) == (1200, 40)
    assert (p.written, p.without_document, p.completions) == (12 * 60, 1000 + 300, 400 * 5 * 4)
    assert [(a.role, a.count, a.cpus, a.gpus) for a in p.actors] == [
        ("rollout", 2, 1.0, 0.0),
        ("learner", 1, 0.0, 0.0),
        ("reward", 1, 0.0, 0.0),
        ("semantic", 1, 0.0, 0.0),
    ]
    assert (p.cpus, p.gpus) == (2.0, 0)
    assert (
        plan(config(*fixed, "reading.synthetic_documents=50")).without_document
        == p.without_document + 100
    )
    reads = (
        plan(config("replay.share=1", f"reading.synthetic_documents={n}")).without_document
        for n in (0, 50)
    )
    assert len(set(reads)) == 1  # then nothing is read
    assert (
        plan(config("replay.share=1")).written
        == 0
        == plan(config("replay.share=0")).without_document
    )
    tokens = 50
    parameters = TASK_BASES["world"].parameters
    seconds = 6 * parameters * tokens * 40 * 400 / 60e9 + 2 * parameters * tokens * 10020 / (
        2 * 18e9
    )
    assert p.seconds == pytest.approx(3 * seconds)


def test_push_size_of_qwen3_8b():
    c = config(name="gpu8_qwen3_8b")
    p = plan(c)
    assert p.base.parameters == 8_190_735_360  # as on its model card
    weights = 3 * 64 * 4096 * 2 * 36
    assert weights == 56_623_104
    assert p.push_bytes == weights + 36 * (4096 * 2 + 6)
    assert p.push_bytes / p.full_bytes < 0.01
    assert (p.gpus, p.cpus, p.learner.base) == (8, 8, 2 * 8_190_735_360)
    text = render(p)
    assert "56.9 MB (one expert) of 16.7 GB (all weights): 0.34%" in text
    assert "published shape, as the hub is switched off" in text


def test_parameters_of_published_shapes():
    assert PUBLISHED["Qwen/Qwen3-1.7B"].parameters == 1_720_574_976
    assert PUBLISHED["meta-llama/Llama-3.1-8B"].parameters == 8_030_261_248


def test_render_has_one_line_per_row(checkpoint):
    for p in (
        plan(config()),
        plan(config(name="gpu1")),
        plan(config(f"model.base={checkpoint(max_position_embeddings=512)}", *SMALL_ARGS)),
    ):
        lines = render(p).splitlines()
        assert all(re.fullmatch(r"[a-z][a-z ]{15} \S.*", line) for line in lines)
    assert "world (the task's own small base): qwen3, 2 layers of 96" in render(plan(config()))


def test_cached_base_gives_the_shape(checkpoint, tmp_path):
    (tmp_path / "cache").mkdir()
    checkpoint("cache/world-0123", hidden_size=24)
    assert base_shape(config()).hidden == 24


def test_memory_folder_has_the_shape_of_its_base(checkpoint, tmp_path):
    base = checkpoint()
    memory = tmp_path / "memory"
    memory.mkdir()
    levels = [{"experts": 3, "d_low": 2, "top_k": 3}]
    (memory / "memory.json").write_text(json.dumps({"base": str(base), "memory_levels": levels}))
    assert plan(config(f"model.base={memory}", *SMALL_ARGS)).base.parameters == 1288
    assert refusal(f"model.base={memory}", *SMALL_ARGS, "model.d_low=4").startswith(
        f"model: its checkpoint {memory} has the memory [{{'experts': 3, 'd_low': 2"
    )


BAD_CONFIGS = [
    (
        {"model_type": "gpt2"},
        "config.json: model_type: expected qwen3, qwen2, llama or one of "
        "them after sleep_, got gpt2",
    ),
    (
        {"model_type": None},
        "config.json: model_type: expected qwen3, qwen2, llama or one of them "
        "after sleep_, got None",
    ),
    ({"hidden_size": "8"}, 'config.json: hidden_size: expected an integer >= 1, got "8"'),
    ({"vocab_size": None}, "config.json: vocab_size: expected an integer >= 1, got null"),
    ({"num_hidden_layers": 0}, "config.json: num_hidden_layers: expected an integer >= 1, got 0"),
    (
        {"memory_levels": 3},
        "config.json: memory_levels: expected a list of mappings with d_low, "
        "experts, top_k, "
        "each an integer >= 1, got 3",
    ),
]


@pytest.mark.parametrize(
    ("changes", "line"), BAD_CONFIGS, ids=[next(iter(c)) for c, _ in BAD_CONFIGS]
)
def test_invalid_config_json_gives_one_line_error(checkpoint, changes, line):
    folder = checkpoint(**changes)
    assert refusal(f"model.base={folder}") == f"{folder}/{line}"


def test_invalid_bases_give_one_line_errors(checkpoint, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    folder = checkpoint()
    assert refusal("model.base=./none") == (
        "model.base: expected a checkpoint folder or a hub name, got ./none: no such folder"
    )
    assert (
        refusal("model.base=file")
        == "model.base: expected a checkpoint folder or a hub name, got the file file"
    )
    assert (
        refusal("model.base=empty")
        == "model.base: expected a checkpoint folder with config.json, got empty"
    )
    assert refusal("model.base=someone/something") == (
        "model.base: no local folder, nothing "
        "cached and the hub is "
        "switched off (HF_HUB_OFFLINE), got "
        "someone/something"
    )
    (folder / "config.json").write_text("{")
    assert refusal("model.base=base").startswith("base/config.json: expected JSON, got ")
    (folder / "config.json").write_text("[]")
    assert refusal("model.base=base") == "base/config.json: expected a JSON object, got list"
    (folder / "model.safetensors").unlink()
    assert (
        refusal("model.base=base")
        == "model.base: expected a checkpoint folder with *.safetensors, got base"
    )


def test_unreachable_hub_gives_one_line_error(monkeypatch):
    def down(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(shapes.urllib.request, "urlopen", down)
    assert refusal("model.base=a/b") == (
        "model.base: no local folder, nothing cached and the hub cannot be reached, got a/b"
    )


@pytest.mark.parametrize(
    "vocab", [{"a": 0, "b": 11}, [[str(i), 0.0] for i in range(12)]], ids=["mapping", "unigram"]
)
def test_tokenizer_larger_than_the_base_is_refused(checkpoint, vocab):
    folder = checkpoint()
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": vocab}, "added_tokens": [{"id": 3}]})
    )
    assert refusal("model.base=base") == (
        "base/tokenizer.json: expected at most the 10 ids of "
        "config.json, got id 11; "
        "tokenizer and base do not belong together"
    )
    (folder / "tokenizer.json").write_text("{}")
    assert (
        refusal("model.base=base") == "base/tokenizer.json: expected a tokenizer with model.vocab"
    )


MISFITS = [
    (
        ("rollouts.engine.max_model_len=512",),
        "rollouts.engine.max_model_len: at most the 256 positions of the base model, got 512",
    ),
    (
        ("rollouts.engine.max_model_len=32",),
        "rollouts.engine.max_model_len: at least 50, a document of the task and a generated "
        "sequence, got 32",
    ),
    (
        ("rollouts.engine.kv_cache_memory_bytes=1000",),
        "rollouts.engine.kv_cache_memory_bytes: at least 786432, one sequence of max_model_len = "
        "256 tokens, got 1000",
    ),
    (
        ("rollouts.gpus=4", "rollouts.tensor_parallel=4"),
        "rollouts.tensor_parallel: must divide the base model's 6 heads and fit its 6 key-value "
        "heads, got 4",
    ),
    (
        ("reward.semantic=encoder", "reward.model=./none"),
        "reward.model: expected a checkpoint folder or a hub name, got ./none: no such folder",
    ),
]


@pytest.mark.parametrize(("overrides", "line"), MISFITS, ids=[m[0][0] for m in MISFITS])
def test_config_that_does_not_fit_the_base_gives_one_line_error(overrides, line):
    assert refusal(*overrides) == line


def test_notes(monkeypatch):
    monkeypatch.setattr(checks.os, "cpu_count", lambda: 2)
    notes = plan(
        config(
            "rollouts.workers=3", "learners.world_size=12", "model.dtype=bfloat16", "model.top_k=1"
        )
    ).notes
    assert [note.split()[0] for note in notes] == ["3", "sleep.batch", "reward.gamma", "top_k"]
    assert plan(config("objective.on_policy=0")).notes[0] == (
        "objective.on_policy 0 of sleep.batch 40 is less than one group of 4: the student samples "
        "nothing, so there is no imitation reward"
    )
    assert plan(config("objective.on_policy=1")).notes[0] == (
        "rehearsal.priority: with objective.on_policy 1 no teacher sequence is rehearsed in a "
        "batch, so no divergence is measured and all weights are equal"
    )
    assert (
        plan(config("reward.gamma=0.5", "reward.semantic=encoder", "rollouts.cpus=0.5")).notes == ()
    )


def test_counts_and_bytes_equal_those_of_modules():
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    from sleep_rl.model.memory import MemoryLevel
    from sleep_rl.tasks.world import base_model as world

    for family in FAMILIES:
        for tied in (True, False):
            fields = {**SMALL, "tie_word_embeddings": tied}
            fields.pop("model_type")
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields))
            counted = parse_shape({**fields, "model_type": f"sleep_{family}"}, "test").parameters
            assert counted == sum(p.numel() for p in model.parameters()), (family, tied)
    level = MemoryLevel(8, experts=3, d_low=2, top_k=3)
    small = config("model.experts=3", "model.d_low=2")
    shape = parse_shape(SMALL, "test")
    tensors = [level.router, level.w_in, level.w_out, level.state]
    assert memory_bytes(small, shape) == 2 * sum(t.nbytes for t in tensors)
    assert expert_bytes(small, shape) == 2 * (
        sum(t[1].nbytes for t in tensors[:3]) + level.state.nbytes
    )
    own = parse_shape(world.model_config(world.Recipe()).to_dict(), TASK_BASES["world"].source)
    assert own == replace(TASK_BASES["world"], memory=None)


def test_plan_reads_the_data_and_refuses_impossible_counts(tmp_path):
    assert "task.world.known_people + task.days * task.world.people_per_day is at most" in refusal(
        "task.world.people_per_day=2000"
    )
    data = tmp_path / "data.json"
    missing = refusal("task.name=classify", f"task.classify.path={data}")
    assert missing.startswith(
        f"task.classify.path: a CLINC150 json, a datasets folder or a hub name, got {data}: "
    )
    pairs = [
        [f"please do {verb} the thing number {i}", verb]
        for verb in ("open", "close", "find")
        for i in range(8)
    ]
    data.write_text(json.dumps({"train": pairs, "test": pairs}))
    mine = (
        "task.name=classify",
        f"task.classify.path={data}",
        "task.days=2",
        "task.classify.classes_per_day=1",
    )
    assert plan(config(*mine)).notes[0].startswith("reward.gamma")
    # a page of six lines of 8 words, the opener between them, and 48 tokens of writing
    assert "rollouts.engine.max_model_len: at least " in refusal(
        *mine, "rollouts.engine.max_model_len=64"
    )
    assert plan(config("task.name=classify")).notes[0] == (
        "task.classify.path: clinc/clinc_oos is a dataset of the hub; it was not checked"
    )
    # ARC's files are not on the hub
    engine = "rollouts.engine={max_model_len: 8192, kv_cache_memory_bytes: 8589934592}"
    missing = ("task.name=arc", "model.base=Qwen/Qwen3-8B", engine, "task.arc.path=owner/name")
    assert refusal(*missing).endswith("got owner/name: no such file or folder")


def test_teachers_are_actors_and_missing_paths_are_refused(tmp_path, checkpoint):
    there = plan(config(f"model.teachers=[{checkpoint('a')},hub/name]"))
    assert [(a.role, a.count, a.cpus) for a in there.actors][1] == (
        "peer",
        2,
        1.0,
    ) and there.steps == 4 * 600
    assert refusal(f"model.teachers=[{tmp_path}/none]").startswith(
        "model.teachers: expected a checkpoint folder or a hub name"
    )


def test_bytes_of_critic_copies():
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    from actors.batched_lora import Copies

    fields = {k: v for k, v in SMALL.items() if k != "model_type"}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("qwen3", **fields), dtype=torch.bfloat16
    )
    copies = Copies(model, [0, 1, 2], rank=8, alpha=16.0)
    dreaming = config(
        "task.world.deep=true",
        "dream.rounds=1",
        "model.experts=6",
        "dream.copies.rank=8",
        "critics.copies_per_pass=3",
        "model.dtype=bfloat16",
        "critics.engine.kv_cache_memory_bytes=12345",
    )
    rollout = Bytes(base=100, memory=10, cache=7)
    size = critic_bytes(dreaming, parse_shape(SMALL, "test"), rollout)
    # factor, gradient, two moments
    assert size.optimizer == 4 * sum(t.nbytes for t in copies.factors())
    assert (size.base, size.cache) == (200, 12345)


def test_texts_about_documents_are_counted_by_kind_of_writing(tmp_path, checkpoint):
    """Two documents of two sentences each; the kinds that are not named keep their defaults of 0
    here.
    """
    for name in ("a", "b"):
        text = "One two three four five six. Seven eight nine ten eleven."
        (tmp_path / f"{name}.txt").write_text(f"{name} {text}")
    mine = (
        "task.name=documents",
        f"task.documents.path={tmp_path}",
        f"model.base={checkpoint(max_position_embeddings=512)}",
        "generation.kinds={question: 0, reversed: 3, complete: 1, rephrase: 2, neighbour: 0}",
    )
    # 3 a sentence, 1 for each of three cuts of a sentence, 2 a document
    assert plan(config(*mine)).written == 3 * 4 + 3 * 4 + 2 * 2
    line = refusal(*mine, "generation.kinds={qestion: 1}")
    assert line.startswith("generation.kinds: one of complete, ") and "'qestion'" in line
