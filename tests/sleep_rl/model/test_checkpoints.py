"""Checkpoints with memory: new memory keeps the base's outputs, saving and loading round-trips."""

import json
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.model import checkpoints, memory_folder
from sleep_rl.model.memory import ACTIVE, memory_levels
from tests.fakes.models import LEVELS, PAD, fill_memory, make_base, make_tokenizer

IDS = torch.randint(2, 250, (2, 24), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_new_memory_keeps_base_outputs(family, base_checkpoint):
    base = AutoModelForCausalLM.from_pretrained(base_checkpoint(family)).eval()
    model = checkpoints.load(base_checkpoint(family), LEVELS["dense"])
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, base(IDS).logits)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_full_and_memory_checkpoints_round_trip(family, base_checkpoint, tmp_path):
    model = checkpoints.load(base_checkpoint(family), LEVELS["sparse"])
    fill_memory(model)
    checkpoints.save(model, make_tokenizer(), str(tmp_path / "full"))
    memory_folder.save_memory(model, str(tmp_path / "memory"), base_checkpoint(family))
    with torch.no_grad():
        want = model(IDS).logits
        for kind in ("full", "memory"):
            assert torch.equal(checkpoints.load(str(tmp_path / kind))(IDS).logits, want), kind
    size = {
        kind: sum(f.stat().st_size for f in (tmp_path / kind).iterdir())
        for kind in ("full", "memory")
    }
    assert (
        set(os.listdir(tmp_path / "memory")) == {memory_folder.POINTER, memory_folder.MEMORY}
        and size["memory"] < size["full"]
    )
    assert all(".memory." in key for key in load_file(tmp_path / "memory" / memory_folder.MEMORY))


def test_expand_links_base_and_is_deterministic_in_seed(base_checkpoint, tmp_path):
    out = [
        checkpoints.expand(base_checkpoint(), str(tmp_path / str(i)), LEVELS["dense"], seed)
        for i, seed in enumerate((3, 3, 4))
    ]
    memories = [load_file(os.path.join(path, memory_folder.MEMORY)) for path in out]
    key = "model.layers.1.mlp.memory.0.w_in"
    assert torch.equal(memories[0][key], memories[1][key]) and not torch.equal(
        memories[0][key], memories[2][key]
    )
    assert os.path.islink(os.path.join(out[0], checkpoints.BASE_WEIGHTS))
    loaded = memory_levels(checkpoints.load(out[0]))["model.layers.1.mlp.memory.0"]
    assert torch.equal(loaded.w_in, memories[0][key])
    assert checkpoints.expand(out[0], str(tmp_path / "again"), LEVELS["dense"]) == out[0]


def test_memory_on_sleep_checkpoint_replaces_older_memory(
    base_checkpoint, sleep_checkpoint, tmp_path
):
    older = {
        "linked": checkpoints.expand(
            base_checkpoint(), str(tmp_path / "linked"), LEVELS["dense"], 5
        ),
        "one file": sleep_checkpoint(),
        "a memory folder": str(tmp_path / "first"),
    }
    model = checkpoints.load(older["linked"])
    memory_folder.save_memory(model, older["a memory folder"], memory_folder.root(older["linked"]))
    key = "model.layers.1.mlp.memory.0.w_out"
    token = torch.arange(8)[None]
    for number, path in enumerate(older.values()):
        model = checkpoints.load(path)
        level = memory_levels(model)["model.layers.1.mlp.memory.0"]
        level.w_out.data.fill_(number + 0.25)
        level.set_state([ACTIVE] * level.slots)
        want = model(input_ids=token).logits
        memory_folder.save_memory(
            model, str(tmp_path / f"memory{number}"), memory_folder.root(path)
        )
        full = checkpoints.expand(
            str(tmp_path / f"memory{number}"), str(tmp_path / f"full{number}"), LEVELS["dense"]
        )
        weights = {}
        index = json.loads(Path(full, checkpoints.INDEX).read_text())
        for file in set(index["weight_map"].values()):
            parts = load_file(os.path.join(full, file))
            assert not weights.keys() & parts.keys(), "a loader would have to choose"
            weights |= parts
        assert torch.equal(weights[key], torch.full_like(weights[key], number + 0.25))
        assert torch.equal(checkpoints.load(full)(input_ids=token).logits, want)
        assert torch.equal(
            checkpoints.load(str(tmp_path / f"memory{number}"))(input_ids=token).logits, want
        )


def test_hub_name_is_kept_in_pointer(base_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert memory_folder.root("Qwen/Qwen3-1.7B") == "Qwen/Qwen3-1.7B"
    memory_folder.save_memory(
        checkpoints.load(base_checkpoint(), LEVELS["dense"]),
        "memory",
        memory_folder.root("Qwen/Qwen3-1.7B"),
    )
    assert (
        json.loads((tmp_path / "memory" / memory_folder.POINTER).read_text())["base"]
        == "Qwen/Qwen3-1.7B"
    )
    assert memory_folder.root("memory") == "Qwen/Qwen3-1.7B"
    os.mkdir("here")
    assert memory_folder.root("here") == str(tmp_path / "here")


def test_failed_write_keeps_earlier_checkpoint(base_checkpoint, tmp_path):
    model = checkpoints.load(base_checkpoint(), LEVELS["dense"])
    memory_folder.save_memory(model, str(tmp_path / "memory"), base_checkpoint())
    before = (tmp_path / "memory" / memory_folder.MEMORY).read_bytes()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # no file may grow further: safetensors' own error
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(RunError) as error:
            memory_folder.save_memory(model, str(tmp_path / "memory"), base_checkpoint())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert one_line(error).endswith("earlier files are intact") and "cannot be written" in str(
        error.value
    )
    assert (tmp_path / "memory" / memory_folder.MEMORY).read_bytes() == before and len(
        os.listdir(tmp_path)
    ) == 1


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_invalid_checkpoints_give_one_line_errors(base_checkpoint, tmp_path):
    with pytest.raises(InputError) as error:
        checkpoints.load(str(tmp_path / "nowhere"), LEVELS["dense"])
    assert "nowhere" in one_line(error)
    broken = make_base("qwen3", str(tmp_path / "broken"))
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(InputError) as error:
        checkpoints.load(broken, LEVELS["dense"])
    assert "weights" in one_line(error)
    config = json.loads((tmp_path / "broken" / "config.json").read_text())
    (tmp_path / "broken" / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(InputError) as error:
        checkpoints.load(broken, LEVELS["dense"])
    assert "qwen3, qwen2, llama" in one_line(error) and "gpt2" in one_line(error)


def test_memory_with_other_levels_is_refused(base_checkpoint, sleep_checkpoint, tmp_path):
    with pytest.raises(InputError) as error:
        checkpoints.load(sleep_checkpoint(), LEVELS["sparse"])
    assert "top_k" in one_line(error)
    with pytest.raises(InputError) as error:
        checkpoints.load(base_checkpoint())
    assert "sleep checkpoint" in one_line(error)
    model = checkpoints.load(base_checkpoint(), LEVELS["dense"])
    memory_folder.save_memory(model, str(tmp_path / "memory"), base_checkpoint())
    file = tmp_path / "memory" / memory_folder.MEMORY
    save_file({key: tensor[..., :-1].contiguous() for key, tensor in load_file(file).items()}, file)
    with pytest.raises(InputError) as error:
        checkpoints.load(str(tmp_path / "memory"))
    one_line(error)


def test_different_vocabularies_are_refused(base_checkpoint, tmp_path):
    model = checkpoints.load(base_checkpoint(), LEVELS["dense"])
    memory_folder.save_memory(model, str(tmp_path / "memory"), base_checkpoint())
    pointer = tmp_path / "memory" / memory_folder.POINTER
    pointer.write_text(json.dumps({**json.loads(pointer.read_text()), "vocab_size": 299}))
    with pytest.raises(InputError) as error:
        checkpoints.load(str(tmp_path / "memory"))
    assert (
        "299" in one_line(error)
        and "300" in str(error.value)
        and "same vocabulary" in str(error.value)
    )


def test_other_teacher_needs_same_vocabulary(base_checkpoint, sleep_checkpoint, tmp_path):
    student = sleep_checkpoint("qwen3")
    tokenizer = checkpoints.load_tokenizer(student, 300)
    # the ids beyond the tokens pad the embedding, to any multiple
    for family, ids in (("llama", 300), ("llama", 320), ("qwen3", len(tokenizer))):
        plain = make_base(
            family, str(tmp_path / f"{family} {ids}"), hidden_size=32, head_dim=16, vocab_size=ids
        )
        out = checkpoints.as_teacher(plain, str(tmp_path / f"teacher of {ids}"), tokenizer)
        with torch.no_grad():
            want = AutoModelForCausalLM.from_pretrained(plain)(IDS).logits
            assert torch.equal(checkpoints.load(out)(IDS).logits, want)
    # with the memory that it has
    assert checkpoints.as_teacher(student, "unused", tokenizer) == student
    other = make_base("qwen3", str(tmp_path / "other"))
    theirs, mine = (checkpoints.load_tokenizer(other, 300) for _ in range(2))
    theirs.add_tokens(["elsewhere"])
    theirs.save_pretrained(other)
    mine.add_tokens(["here"])
    for ours, wrong in (
        (tokenizer, "got 264 tokens and 263"),
        (mine, "got 264 tokens and 264, others"),
    ):
        with pytest.raises(InputError) as error:
            checkpoints.as_teacher(other, f"{other} as teacher", ours)
        assert one_line(error).endswith(wrong) and "need the same vocabulary" in str(error.value)


def test_tokenizer_with_too_many_ids_is_refused(base_checkpoint):
    assert checkpoints.load_tokenizer(base_checkpoint(), 300).pad_token_id == PAD
    with pytest.raises(InputError) as error:
        checkpoints.load_tokenizer(base_checkpoint(), 100)
    assert "100" in one_line(error) and "belong together" in one_line(error)


@pytest.mark.parametrize("path", ["runs/none/memory/night-9", "/no/such", "./x", "a b", "../up"])
def test_missing_folder_is_not_taken_for_hub_name(path):
    with pytest.raises(
        InputError,
        match=r"expected a checkpoint folder or a hub name, got no such folder$",
    ):
        checkpoints.read_config(path)
    checkpoints.check_exists("Qwen/Qwen3-8B")  # may be one of the hub's
