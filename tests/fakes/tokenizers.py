"""Real byte-level tokenizers with chat templates: trained in a second, or of a package."""

from __future__ import annotations

import shutil
from pathlib import Path

import mistral_common
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
)
DEMANDS_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('a system turn is needed') }}"
    "{% endif %}" + CHATML
)
REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    + CHATML
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "thinking": THINKING,
    "demands a system turn": DEMANDS_SYSTEM,
    "refuses a system turn": REFUSES_SYSTEM,
    "llama3": LLAMA3,
}
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen's and Llama-3's pre-tokenizer: a mark and the line breaks behind it can be one token."""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>"]
SPECIAL += ["<|end_header_id|>", "<|eot_id|>"]


def chat_tokenizer(template: str = CHATML) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with Qwen's pre-tokenizer, whose vocabulary has "?\\n"."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = ["Question: Who was there?\nAnswer: The old man.\n\n", 'He said "yes".\n', "(so)\n"]
    core.train_from_iterator(text * 50, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    tokenizer.add_tokens(["<think>", "</think>"])  # added, but not special: as Qwen3 has them
    tokenizer.chat_template = template
    return tokenizer


def tekken(folder: Path) -> PreTrainedTokenizerFast:
    """Return Mistral's tekken, which comes with vLLM's requirements, with its chat template."""
    source = Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"
    shutil.copy(source, folder / "tekken.json")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = "<s>"
    tokenizer.eos_token = "</s>"
    tokenizer.chat_template = MISTRAL
    return tokenizer
