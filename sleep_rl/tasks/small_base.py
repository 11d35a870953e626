"""Train a task's small base decoder from random weights, in pure torch and transformers.

Shapes: `_B` sequences of a batch, `_T` tokens of a sequence, `_V` the vocabulary.
"""

from __future__ import annotations

import errno
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from sleep_rl.contracts.errors import RunError
from sleep_rl.files import atomic_folder

PAD = "<pad>"
BOS = "<bos>"
EOS = "<eos>"
UNK = "<unk>"
SPECIAL = (PAD, BOS, EOS, UNK)

Batches = Callable[[int], tuple[Tensor, Tensor]]
"""step -> (ids_BT padded on the right, weight_BT of each token in the loss; 0 for padding)"""
Progress = Callable[[int, int, float], None]
"""Called with (finished steps, all steps, loss in nats) after each step."""


def cache_folder(cache: str, prefix: str, depends_on: str) -> Path:
    """Return the folder in `cache` of a base; its name ends with the digest of `depends_on`, which
    describes everything that the weights depend on.
    """
    digest = hashlib.sha256(depends_on.encode()).hexdigest()
    return Path(cache) / f"{prefix}-{digest[:16]}"


def word_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word: special tokens first, then `vocabulary` in order.

    Text is split at white space only, so that parts of a text can be tokenized separately. No
    tokens are added (no <bos>), and decoding joins the words by spaces. Raises ValueError for a
    word that repeats, is empty or contains white space.
    """
    words = [*SPECIAL, *vocabulary]
    bad = [word for word in words if word.split() != [word]]
    if bad or len(set(words)) != len(words):
        raise ValueError(
            f"a vocabulary holds distinct words without white space, got {bad or 'a repeated word'}"
        )
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        # otherwise "live ?" is decoded as "live?", which is not in the vocabulary
        clean_up_tokenization_spaces=False,
    )


def byte_tokenizer(
    texts: Iterable[str], size: int, split: Any, single_tokens: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of `size` tokens on `texts`; it can encode any later text.

    `split`: the pre-tokenizer. `single_tokens` are added as tokens that split the text.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = split
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, BOS, EOS],
        # sorted, since the order of a set is random
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_tokens([AddedToken(token, normalized=False) for token in single_tokens])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )


def qwen3_config(
    tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int, positions: int
) -> Qwen3Config:
    """Return the config of a small base for text: about 0.9M parameters at hidden 128.

    head_dim is 32, the smallest that vLLM's CPU attention supports.
    """
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        head_dim=32,
        max_position_embeddings=positions,
        # small, for few positions: the model learns to copy faster
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        tie_word_embeddings=True,
        # the default is for wide models and trains more slowly
        initializer_range=hidden**-0.5,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def padded_batch(rows: Iterable[tuple[list[int], list[float]]]) -> tuple[Tensor, Tensor]:
    """Return (ids_BT, weight_BT) of rows of (token ids, loss weights), padded with 0, which is the
    id of <pad>.
    """
    pad = torch.nn.utils.rnn.pad_sequence
    rows = list(rows)
    ids_BT = pad([torch.tensor(ids) for ids, _ in rows], batch_first=True)
    weight_BT = pad([torch.tensor(weights) for _, weights in rows], batch_first=True)
    return ids_BT, weight_BT


def weighted_loss(logits_BTV: Tensor, ids_BT: Tensor, weight_BT: Tensor) -> Tensor:
    """Return the weighted mean of next-token cross entropies, in nats; the weight of the first
    token is not used.
    """
    losses_BT = F.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none"
    )
    weights_BT = weight_BT[:, 1:].flatten()
    return (losses_BT * weights_BT).sum() / weights_BT.sum()


def train_base(
    out: str | Path,
    tokenizer: Any,
    config: PretrainedConfig,
    batches: Batches,
    steps: int,
    lr: float,
    seed: int,
    progress: Progress | None = None,
) -> Path:
    """Train a decoder with `config`, save it with its tokenizer to `out`, and return `out`.

    AdamW in fp32, linear warm-up, then cosine decay, gradients clipped to norm 1; `lr` is the peak.
    The result is deterministic on the same machine with the same number of threads; the caller's
    random state is unchanged. The folder is written atomically; if two processes train the same
    base, the first one's stays. Raises RunError if the loss is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.train()
        optimizer = torch.optim.AdamW(
            _parameter_groups(model), lr=lr, betas=(0.9, 0.98), fused=True
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: _lr_factor(step, steps)
        )
        for step in range(steps):
            ids_BT, weight_BT = batches(step)
            loss = weighted_loss(model(input_ids=ids_BT, use_cache=False).logits, ids_BT, weight_BT)
            value = loss.item()
            if not math.isfinite(value):
                raise RunError(
                    f"loss of base model {out} is {value} at step {step + 1} of {steps}; "
                    f"lower lr ({lr})?"
                )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(step + 1, steps, value)
    model.eval()
    _save(model, tokenizer, Path(out))
    return Path(out)


def _parameter_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Return the optimizer's groups: weight decay for matrices, none for the gains of norms."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": 0.01}, {"params": gains, "weight_decay": 0.0}]


def _lr_factor(step: int, steps: int) -> float:
    """Return lr / peak: linear over the first 5 % of the steps, then half a cosine down to 0."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _save(model: torch.nn.Module, tokenizer: Any, out: Path) -> None:
    """Save a model and its tokenizer to `out`, unless another process already has.

    Raises RunError if it cannot be written.
    """
    try:
        with atomic_folder(out, replace=False) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) in (errno.EEXIST, errno.ENOTEMPTY):
            return  # another process was first
        raise RunError(
            f"base model {out}: cannot be written ({str(error).splitlines()[0]})"
        ) from error
