"""Write an ordinary Hugging Face checkpoint from a quantised GGUF file of the Llama kind.

Transformers' own loader is not used: it needs the package accelerate, which every process would
then import, and returns a model that cannot be saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from gguf import MODEL_ARCH, GGUFReader, dequantize, get_tensor_name_map
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from sleep_rl.contracts.errors import InputError, one_line


def write_checkpoint(file: Path, folder: Path, digits_apart: bool) -> None:
    """Write model (float32), generation config and tokenizer of a GGUF file to an existing folder.

    `digits_apart`: whether the tokenizer was trained with single digits, which transformers does
    not read from the file. Raises InputError for a file that cannot be read, OSError or
    SafetensorError if the folder cannot be written.
    """
    try:
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        model = _model(file, config)
        tokenizer = _tokenizer(file, digits_apart)
    # Boundary: transformers and gguf raise many types for an invalid file.
    except Exception as error:
        raise InputError(f"model {file}: cannot be read ({one_line(error)})") from error
    tokenizer.model_max_length = config.max_position_embeddings
    with _without_bars():  # the caller's phase is shown already
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _model(file: Path, config: PretrainedConfig) -> PreTrainedModel:
    """Return the model with every weight of the file in float32."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    stored = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    weights = {}
    for key in model.state_dict():
        tied = key == "lm_head.weight" and config.tie_word_embeddings
        module, _, kind = ("model.embed_tokens.weight" if tied else key).rpartition(".")
        tensor = stored[f"{names.get_name(module)}.{kind}"]
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if module.endswith("q_proj"):
            values = _unpaired(values, config.num_attention_heads)
        elif module.endswith("k_proj"):
            values = _unpaired(values, config.num_key_value_heads)
        weights[key] = values
    model.load_state_dict(weights)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    return model


def _unpaired(weight_OI: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the rows of a query or key projection in transformers' order.

    The rotary embedding rotates pairs of rows. In a GGUF file of the Llama kind the two of a pair
    are adjacent, in transformers half a head apart.
    """
    size = weight_OI.shape[0] // heads
    return weight_OI.view(heads, size // 2, 2, -1).transpose(1, 2).reshape(weight_OI.shape)


def _tokenizer(file: Path, digits_apart: bool) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a byte-level GGUF file, chat template included.

    Transformers splits text as GPT-2 does, whatever the file says. A tokenizer that was trained
    with digits apart gives other tokens to white space before a number ("\\n\\n1").
    """
    tokenizer = AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, local_files_only=True
    )
    if digits_apart:
        bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), bytes_of_words]
        )
    return tokenizer


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers' progress bars off the console inside the block."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
