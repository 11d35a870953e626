"""Memory from a layer up: what is stored, read and refused; the presets' models without weights."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sleep_rl.config.loader import load
from sleep_rl.contracts.errors import InputError
from sleep_rl.model import checkpoints, memory_folder
from sleep_rl.model.memory import MemoryLevel, init_slots, memory_levels
from sleep_rl.model.memory_shape import check_levels, memory_of
from sleep_rl.model.modeling import CLASSES
from sleep_rl.model.shape import base_shape, checkpoint_shape
from sleep_rl.plan.plan import plan
from sleep_rl.plan.sizes import bytes_per_parameter, memory_bytes
from tests.fakes.configs import toy
from tests.fakes.models import LEVELS, fill_memory

ROOT = Path(__file__).parents[3]
IDS = torch.randint(2, 250, (2, 24), generator=torch.Generator().manual_seed(5))
SIZES = {"experts": 3, "d_low": 2, "top_k": 1}
PRESETS = [
    (path.stem, [f"model.memory_layers={lowest}"], lowest)
    for path in sorted((ROOT / "configs").glob("*_8b.yaml"))
    for lowest in (0, 24)
]
PRESETS.append(
    ("documents_gpu1", [f"task.documents.path={ROOT / 'configs' / 'example' / 'day1'}"], 14)
)
"""(name, keys, lowest layer with memory)."""


def layers_of(model):
    """Return the numbers of the layers with memory."""
    return sorted({int(name.split(".")[2]) for name in memory_levels(model)})


def test_an_entry_names_the_lowest_layer_only_if_there_are_others_below():
    def entry(layers):
        return memory_of(toy(model={**SIZES, "chunks": [1, 2], "memory_layers": layers}))

    assert entry("all") == entry(0) == [SIZES, SIZES]
    assert entry(7) == 2 * [{**SIZES, "first_layer": 7}]


@pytest.mark.parametrize("kind", ["two levels", "upper locked"])
def test_new_memory_is_drawn_layer_by_layer_from_the_lowest_one(kind, base_checkpoint):
    """A memory in all layers has the numbers that it always had."""
    levels = LEVELS[kind]
    config = checkpoints.load(base_checkpoint(), levels).config
    generator = torch.Generator().manual_seed(3)
    want = {}
    for layer in (0, 1) if kind == "two levels" else (1,):
        for number in range(len(levels)):
            level = MemoryLevel(64, 4, 16, 4)
            init_slots(level, generator=generator)
            for part, tensor in level.state_dict().items():
                want[f"model.layers.{layer}.mlp.memory.{number}.{part}"] = tensor
    got = checkpoints.new_memory(config, seed=3)
    assert got.keys() == want.keys() and all(torch.equal(got[key], want[key]) for key in want)


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_checkpoints_with_memory_in_the_upper_layer_round_trip(family, base_checkpoint, tmp_path):
    base = base_checkpoint(family)
    model = checkpoints.load(base, LEVELS["upper"])
    assert layers_of(model) == [1]
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, checkpoints.load(base, LEVELS["locked"])(IDS).logits)
        fill_memory(model)
        want = model(IDS).logits
    memory = tmp_path / "memory"
    memory_folder.save_memory(model, str(memory), base)
    assert {key.split(".")[2] for key in load_file(memory / memory_folder.MEMORY)} == {"1"}
    assert memory_folder.read_pointer(memory)["memory_levels"] == LEVELS["upper"]
    assert checkpoint_shape(str(memory)).memory == tuple(LEVELS["upper"])
    full = checkpoints.expand(str(memory), str(tmp_path / "full"), LEVELS["upper"])
    for path in (str(memory), full):
        loaded = checkpoints.load(path, LEVELS["upper"])
        assert layers_of(loaded) == [1] and torch.equal(loaded(IDS).logits, want)
        with pytest.raises(InputError, match=r"'first_layer': 1.*, the config asks for") as error:
            checkpoints.expand(path, str(tmp_path / "other"), LEVELS["dense"])
        assert "\n" not in str(error.value)


def test_a_layer_above_the_last_one_is_refused(base_checkpoint, tmp_path):
    levels = [{**SIZES, "first_layer": 2}]
    with pytest.raises(InputError) as error:
        checkpoints.expand(base_checkpoint(), str(tmp_path / "out"), levels)
    assert str(error.value) == (
        "model.memory_layers: all, or at most 1, the last layer of the base model, got 2"
    )
    model = checkpoints.load(base_checkpoint(), LEVELS["upper"])
    memory_folder.save_memory(model, str(tmp_path / "memory"), base_checkpoint())
    pointer = tmp_path / "memory" / memory_folder.POINTER
    pointer.write_text(json.dumps({**json.loads(pointer.read_text()), "memory_levels": levels}))
    with pytest.raises(InputError, match=r"below the base's 2 layers, got 2$"):
        checkpoint_shape(str(tmp_path / "memory"))


@pytest.mark.parametrize(
    ("levels", "line"),
    [
        ([{**SIZES, "first_layer": 0}], "expected a list of mappings with d_low, experts, top_k"),
        ([{**SIZES, "first_layer": "1"}], "expected a list of mappings with d_low, experts, top_k"),
        ([{**SIZES, "last_layer": 1}], "expected a list of mappings with d_low, experts, top_k"),
        (
            [SIZES, {**SIZES, "first_layer": 1}],
            "expected the same first_layer in each level below the base's 4 layers, got 0, 1",
        ),
        (
            [{**SIZES, "first_layer": 4}],
            "expected the same first_layer in each level below the base's 4 layers, got 4",
        ),
    ],
)
def test_invalid_levels_are_one_line(levels, line):
    with pytest.raises(InputError) as error:
        check_levels(levels, "config.json", layers=4)
    assert str(error.value).startswith(f"config.json: memory_levels: {line}")
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("name, keys, lowest", PRESETS)
def test_models_of_presets_have_memory_from_the_layer_up(name, keys, lowest):
    """On the meta device, without weights; the bytes are those of the plan."""
    config = load(str(ROOT / "configs" / f"{name}.yaml"), keys)
    shape = base_shape(config)
    sleep_config, sleep_model = CLASSES[shape.family]
    with torch.device("meta"):
        model = sleep_model(
            sleep_config(
                vocab_size=shape.vocab,
                hidden_size=shape.hidden,
                intermediate_size=shape.intermediate,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.kv_heads,
                head_dim=shape.head_dim,
                memory_levels=memory_of(config),
            )
        )
    assert layers_of(model) == list(range(lowest, shape.layers))
    parts = [tensor for v in memory_levels(model).values() for tensor in v.state_dict().values()]
    width = bytes_per_parameter(config)
    size = sum(t.numel() * (width if t.is_floating_point() else t.element_size()) for t in parts)
    assert memory_bytes(config, shape) == size
    planned = plan(config)
    whole = plan(dataclasses.replace(config, model=_everywhere(config)))
    share = (shape.layers - lowest) / shape.layers
    assert planned.push_bytes == pytest.approx(whole.push_bytes * share)
    assert planned.learner.optimizer == pytest.approx(whole.learner.optimizer * share, abs=1)
    assert lowest == 0 or planned.learner.total < whole.learner.total
    assert lowest == 0 or planned.seconds < whole.seconds


def test_the_preset_for_documents_on_a_gpu_has_the_upper_half_and_writes_what_the_small_one_does():
    presets = {
        name: load(str(ROOT / "configs" / f"{name}.yaml"), [])
        for name in ("documents", "documents_gpu1")
    }
    large = presets["documents_gpu1"]
    assert large.model.first_layer == base_shape(large).layers // 2
    kinds = {name: config.generation.kinds for name, config in presets.items()}
    assert all(kinds["documents_gpu1"][kind] for kind, share in kinds["documents"].items() if share)
    documents = large.task.documents
    # a page, a question and its answer fit the engine
    room = large.rollouts.engine["max_model_len"]
    assert documents.piece_tokens + 2 * documents.max_new_tokens < room


def _everywhere(config):
    return dataclasses.replace(config.model, memory_layers="all")
