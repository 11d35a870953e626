"""Trains a small base decoder from random weights, for tasks that bring their own world.

Pure torch and transformers: a base model must exist before any engine, learner or cluster does.
Shapes: `_B` sequences of a batch, `_T` tokens of a sequence, `_V` the vocabulary.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from sleep_rl.contracts.errors import RunError
from sleep_rl.files import atomic_folder

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIAL = (PAD, BOS, EOS, UNK)

Batches = Callable[[int], tuple[Tensor, Tensor]]
Progress = Callable[[int, int, float], None]


def word_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word: special tokens first, then `vocabulary` in its order.

    Text is split at white space only, so texts joined by a space can be tokenized piece by piece.
    It adds no tokens by itself (no <bos>), and decoding joins the words by spaces. Raises
    ValueError on a word that repeats, is empty or holds white space: such a word could never be
    read back.
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
        # otherwise "live ?" is decoded as "live?", which is another word
        clean_up_tokenization_spaces=False,
    )


def weighted_loss(logits_BTV: Tensor, ids_BT: Tensor, weight_BT: Tensor) -> Tensor:
    """Weighted mean of next-token cross entropies, in nats. Nothing predicts the first token: its
    weight is idle.
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
    """Trains a decoder of shape `config` and stores it with its tokenizer in the folder `out`,
    which it returns.

    `batches(step)` gives token ids [B, T], padded on the right, and the loss weight of predicting
    each of them (0 for padding). AdamW in fp32, warm-up then cosine, gradients clipped to norm 1;
    `lr` is the peak. The same call gives the same bytes on the same machine with the same number of
    threads; the caller's random state is left as it was. `progress(step, steps, loss)` is called
    after each step, from 1 to `steps`, with the loss in nats. `out` appears complete or not at all;
    where two trainers race, the first one's folder stays. Raises RunError on a loss that is not
    finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.train()
        optimizer = torch.optim.AdamW(_groups(model), lr=lr, betas=(0.9, 0.98), fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
        for step in range(steps):
            ids_BT, weight_BT = batches(step)
            loss = weighted_loss(model(input_ids=ids_BT, use_cache=False).logits, ids_BT, weight_BT)
            value = loss.item()
            if not math.isfinite(value):
                raise RunError(
                    f"loss of base model {out} is {value} at step {step + 1} of "
                    f"{steps}; lower lr ({lr})?"
                )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(step + 1, steps, value)
    model.eval()
    _store(model, tokenizer, Path(out))
    return Path(out)


def _groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Weight decay for matrices only: shrinking a norm's gain towards 0 would only fight the
    loss.
    """
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": 0.01}, {"params": gains, "weight_decay": 0.0}]


def _rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear over the first 5 %, then half a cosine down to 0."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _store(model: torch.nn.Module, tokenizer: Any, out: Path) -> None:
    """Write a model and its tokenizer to `out`, where another trainer's folder stays if there is
    one. Raises RunError when the disk refuses.
    """
    try:
        with atomic_folder(out, replace=False) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) in (errno.EEXIST, errno.ENOTEMPTY):
            return  # another trainer was first
        raise RunError(
            f"base model {out}: cannot be written ({str(error).splitlines()[0]})"
        ) from error
