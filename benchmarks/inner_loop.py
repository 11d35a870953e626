"""Dreams trained and scored per minute: isolated copies together, beside SEAL's way with the same
model and recipe.

.venv/bin/python benchmarks/inner_loop.py [--size embedded|20m] [--dreams 64] [--repeat 3]

SEAL's way: each sequence padded to the full length, one dream after another, its adapter saved,
loaded into the engine, asked, and removed again (padding has no loss on either side). Ours:
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

from actors.environment import cpu_environment

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
# tokens of a padded sequence; of a dream: texts, questions, passes
FULL, ROWS, QUESTIONS, EPOCHS = 256, 3, 14, 10


def checkpoint(size: str, folder: str) -> str:
    """A random base of that size with one locked memory level; speed does not depend on what a
    model knows.
    """
    import torch
    import transformers
    from tokenizers import Tokenizer, models

    from sleep_rl.model import checkpoints

    fields = {
        **SIZES[size],
        "head_dim": 32,
        "max_position_embeddings": FULL,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**fields))
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, "<pad>")),
        pad_token="<pad>",
        eos_token="<eos>",
    )
    checkpoints.save(model, words, f"{folder}/base")
    print(f"{size}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters")
    return checkpoints.expand(
        f"{folder}/base", f"{folder}/sleep", [{"experts": 1, "d_low": 8, "top_k": 1}]
    )


def trials(count: int, vocabulary: int) -> list:
    """Dreams as the deep world has them: texts of a dozen tokens, and fourteen questions."""
    from sleep_rl.contracts.records import Trial

    rng = random.Random(0)
    ids = lambda low, high: tuple(
        rng.randrange(2, vocabulary) for _ in range(rng.randint(low, high))
    )
    return [
        Trial(
            tuple((ids(9, 13), (*ids(1, 2), 1)) for _ in range(ROWS)),
            tuple(ids(9, 13) for _ in range(QUESTIONS)),
            seed=n,
            epochs=EPOCHS,
        )
        for n in range(count)
    ]


def one_by_one(critic, trials_N: list, how) -> list:
    """Every trial alone, its rows padded to FULL tokens."""
    from actors import batched_lora

    losses = batched_lora._losses

    def padded(model, rows_N, pad, device):
        return _full(model, rows_N[0], pad)

    batched_lora._losses = padded
    try:
        return [critic.try_out([trial], "base", 0, how)[0] for trial in trials_N]
    finally:
        batched_lora._losses = losses


def _full(model, row, pad):
    """[1] the loss of one row, read with its padding up to FULL tokens."""
    import torch
    import torch.nn.functional as F

    prompt, completion = row
    ids_1T = torch.full((1, FULL), pad)
    end = len(prompt) + len(completion)
    ids_1T[0, :end] = torch.tensor(prompt + completion)
    mask_1T = (torch.arange(FULL) < end).long()[None]
    logits_1TV = model(input_ids=ids_1T, attention_mask=mask_1T, use_cache=False).logits[:, :-1]
    nats_1T = F.cross_entropy(logits_1TV.transpose(1, 2), ids_1T[:, 1:], reduction="none")
    return nats_1T[:, len(prompt) - 1 : end - 1].mean(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="embedded")
    parser.add_argument("--dreams", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    from actors.critic import CriticWorker
    from sleep_rl.contracts.records import Sampling

    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint(arguments.size, folder)
        engine = {
            "max_model_len": FULL,
            "max_num_seqs": 256,
            "kv_cache_memory_bytes": 256 << 20,
            "block_size": 32,
            "enforce_eager": True,
        }
        critic = CriticWorker(
            path, dtype="float32", engine=engine, seed=0, rank=32, alpha=64.0, together=16
        )
        asked, how = (
            trials(arguments.dreams, SIZES[arguments.size]["vocab_size"]),
            Sampling(3, 0.0, (1,)),
        )
        critic.try_out([replace(asked[0], epochs=1)], "base", 0, how)  # first use costs more
        few, ours, theirs = asked[: max(arguments.dreams // 8, 2)], [], []
        for _ in range(arguments.repeat):
            began = time.perf_counter()
            together = critic.try_out(asked, "base", 0, how)
            ours.append(60 * len(asked) / (time.perf_counter() - began))
            began = time.perf_counter()
            alone = one_by_one(critic, few, how)
            theirs.append(60 * len(few) / (time.perf_counter() - began))
            print(
                f"together {ours[-1]:.0f} dreams/min, SEAL's way {theirs[-1]:.0f}; "
                f"{sum(a == b for a, b in zip(alone, together))} of {len(few)} answer alike"
            )
        critic.close()
    print(
        f"{arguments.size}: {statistics.median(ours) / statistics.median(theirs):.1f} x SEAL's "
        "way (medians of "
        f"{arguments.repeat}; asked are 8 x for the embedded model, 5 x for 20m)"
    )


if __name__ == "__main__":
    main()
