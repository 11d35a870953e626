"""Measure dreams trained and evaluated per minute: all copies together, and SEAL's procedure, with
the same model and hyperparameters.

    .venv/bin/python benchmarks/inner_loop.py [--size embedded|20m] [--dreams 64] [--repeat 3]

SEAL's procedure: one dream after another, each sequence padded to the full length; its adapter is
saved, loaded into the engine, queried and removed. Padding has no loss in either. Ours:
`actors.critic.CriticWorker.try_out`.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from dataclasses import replace
from typing import TYPE_CHECKING
from unittest import mock

from actors.environment import cpu_environment
from sleep_rl.contracts.records import CHECKPOINT, Sampling, Trial

if TYPE_CHECKING:
    from torch import Tensor, nn

    from actors.batched_lora import Row
    from actors.critic import CriticWorker

# set before torch and vLLM are imported (in functions), because they read it at import
os.environ.update(cpu_environment(1), HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

SIZES = {
    "embedded": {
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "vocab_size": 256,
    },
    "20m": {
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 13,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "vocab_size": 4096,
    },
}
PADDED_LENGTH = 256  # tokens of a sequence in SEAL's procedure
# per dream:
ROWS = 3
QUESTIONS = 14
EPOCHS = 10


def make_checkpoint(size: str, folder: str) -> str:
    """Return the path of a random sleep checkpoint of that size with one locked memory level; speed
    does not depend on the weights.
    """
    import torch
    import transformers
    from tokenizers import Tokenizer, models

    from sleep_rl.model import checkpoints

    fields = {
        **SIZES[size],
        "head_dim": 32,
        "max_position_embeddings": PADDED_LENGTH,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**fields))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, "<pad>")),
        pad_token="<pad>",
        eos_token="<eos>",
    )
    checkpoints.save(model, tokenizer, f"{folder}/base")
    print(f"{size}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters")
    return checkpoints.expand(
        f"{folder}/base", f"{folder}/sleep", [{"experts": 1, "d_low": 8, "top_k": 1}]
    )


def make_trials(count: int, vocabulary: int) -> list[Trial]:
    """Return trials like those of the deep world: texts of a dozen tokens, and fourteen
    questions.
    """
    rng = random.Random(0)

    def random_ids(shortest: int, longest: int) -> tuple[int, ...]:
        length = rng.randint(shortest, longest)
        return tuple(rng.randrange(2, vocabulary) for _ in range(length))

    return [
        Trial(
            tuple((random_ids(9, 13), (*random_ids(1, 2), 1)) for _ in range(ROWS)),
            tuple(random_ids(9, 13) for _ in range(QUESTIONS)),
            seed=n,
            epochs=EPOCHS,
        )
        for n in range(count)
    ]


def try_one_by_one(critic: CriticWorker, trials_N: list[Trial], sampling: Sampling) -> list:
    """Return the answers of every trial, each trained alone with rows padded to PADDED_LENGTH."""
    from actors import batched_lora

    def padded_losses(model, rows_N, pad, device):
        return padded_loss(model, rows_N[0], pad)

    with mock.patch.object(batched_lora, "row_losses", padded_losses):
        return [critic.try_out([trial], CHECKPOINT, 0, sampling)[0] for trial in trials_N]


def padded_loss(model: nn.Module, row: Row, pad: int) -> Tensor:
    """Return the loss [1] of one row that is padded to PADDED_LENGTH tokens."""
    import torch
    import torch.nn.functional as F

    prompt, completion = row
    end = len(prompt) + len(completion)
    ids_1T = torch.full((1, PADDED_LENGTH), pad)
    ids_1T[0, :end] = torch.tensor(prompt + completion)
    mask_1T = (torch.arange(PADDED_LENGTH) < end).long()[None]
    logits_1TV = model(input_ids=ids_1T, attention_mask=mask_1T, use_cache=False).logits[:, :-1]
    nats_1T = F.cross_entropy(logits_1TV.transpose(1, 2), ids_1T[:, 1:], reduction="none")
    return nats_1T[:, len(prompt) - 1 : end - 1].mean(1)


def compare(critic: CriticWorker, trials_N: list[Trial], repetitions: int) -> tuple[float, float]:
    """Return the medians of dreams per minute: (ours, SEAL's on an eighth of the trials)."""
    sampling = Sampling(3, 0.0, (1,))
    # the first call is slower
    critic.try_out([replace(trials_N[0], epochs=1)], CHECKPOINT, 0, sampling)
    few = trials_N[: max(len(trials_N) // 8, 2)]
    ours: list[float] = []
    seals: list[float] = []
    for _ in range(repetitions):
        start = time.perf_counter()
        together = critic.try_out(trials_N, CHECKPOINT, 0, sampling)
        ours.append(60 * len(trials_N) / (time.perf_counter() - start))
        start = time.perf_counter()
        alone = try_one_by_one(critic, few, sampling)
        seals.append(60 * len(few) / (time.perf_counter() - start))
        # `alone` has the first few only
        equal = sum(a == b for a, b in zip(alone, together, strict=False))
        print(
            f"together {ours[-1]:.0f} dreams/min, SEAL's procedure {seals[-1]:.0f}; "
            f"{equal} of {len(few)} have equal answers"
        )
    return statistics.median(ours), statistics.median(seals)


def main() -> None:
    from actors.critic import CriticWorker

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="embedded")
    parser.add_argument("--dreams", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    engine = {
        "max_model_len": PADDED_LENGTH,
        "max_num_seqs": 256,
        "kv_cache_memory_bytes": 256 << 20,
        "block_size": 32,
        "enforce_eager": True,
    }
    with tempfile.TemporaryDirectory() as folder:
        critic = CriticWorker(
            make_checkpoint(arguments.size, folder),
            dtype="float32",
            engine=engine,
            seed=0,
            rank=32,
            alpha=64.0,
            copies_per_pass=16,
        )
        trials_N = make_trials(arguments.dreams, SIZES[arguments.size]["vocab_size"])
        ours, seals = compare(critic, trials_N, arguments.repeat)
        critic.close()
    print(
        f"{arguments.size}: {ours / seals:.1f} x SEAL's procedure (medians of {arguments.repeat}; "
        "the targets are 8 x for the embedded model, 5 x for 20m)"
    )


if __name__ == "__main__":
    main()
