"""Shared fixtures: tiny checkpoints of the three families, one live engine per checkpoint, the
memory of a test model.

The environment is set before anything imports torch or vLLM: they read it once.
"""

from __future__ import annotations

import os
import signal

from actors.environment import cpu_environment

os.environ.update(cpu_environment(1), HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from sleep_rl.model import checkpoints
from sleep_rl.model.memory import ACTIVE, FRESH, LOCKED, memory_levels

ENGINE = {
    "max_model_len": 128,
    "max_num_seqs": 64,
    "kv_cache_memory_bytes": 32 << 20,
    "enforce_eager": True,
    "max_num_batched_tokens": 256,  # so that a few prompts already do not fit into one step
    # vLLM's 128 on CPU would leave the prefix cache of such short prompts unused
    "block_size": 32,
}
EOS, PAD = 1, 0
VOCABULARY = 300  # the tokenizer has fewer ids: a model may have rows to spare
LEVELS = {
    "dense": [{"experts": 4, "d_low": 16, "top_k": 4}],
    "sparse": [{"experts": 4, "d_low": 16, "top_k": 2}],
}
LEVELS |= {
    "locked": LEVELS["dense"],
    "two levels": 2 * LEVELS["dense"],
    "sparser": [{"experts": 4, "d_low": 16, "top_k": 1}],
}
"""Memory of the test models: `dense` lets all three ACTIVE experts through, `sparse` two of them
per token, `sparser` one; no expert is unlocked in `locked` and `two levels`.
"""
STATES = [LOCKED, ACTIVE, ACTIVE, ACTIVE, FRESH]


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Bytes, and the words yes and no with and without a leading space."""
    words = [
        "<pad>",
        "<eos>",
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        "es",
        "yes",
        "no",
        "Ġyes",
        "Ġno",
    ]
    merges = [("e", "s"), ("y", "es"), ("n", "o"), ("Ġ", "yes"), ("Ġ", "no")]
    backend = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>"
    )


def make_base(family: str, path: str, seed: int = 0, **fields) -> str:
    """A random base checkpoint (2 layers, hidden 64, head_dim 32; `fields` change it) with its
    tokenizer.
    """
    prefix = checkpoints.FAMILIES[family]
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "tie_word_embeddings": family != "llama",
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "initializer_range": 0.1,
        **fields,
    }
    torch.manual_seed(seed)
    model = getattr(transformers, f"{prefix}ForCausalLM")(
        getattr(transformers, f"{prefix}Config")(**shape)
    )
    checkpoints.save(model, make_tokenizer(), path)
    return path


def fill_memory(model: torch.nn.Module, seed: int = 0) -> None:
    """Three ACTIVE experts and a FRESH one with random weights that clearly change what the model
    says.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for level in memory_levels(model).values():
            level.router.normal_(0, 0.3, generator=generator)
            level.w_out.normal_(0, 0.3, generator=generator)
            level.set_state(STATES)


@pytest.fixture(scope="session")
def base_checkpoint(tmp_path_factory):
    """family -> path of a tiny base checkpoint with a tokenizer."""
    made: dict[str, str] = {}

    def path(family: str = "qwen3") -> str:
        if family not in made:
            made[family] = make_base(family, str(tmp_path_factory.mktemp("base") / family))
        return made[family]

    return path


@pytest.fixture(scope="session")
def sleep_checkpoint(base_checkpoint, tmp_path_factory):
    """(family, kind) -> path of a sleep checkpoint; kind: one of LEVELS."""
    made: dict[tuple[str, str], str] = {}

    def path(family: str = "qwen3", kind: str = "dense") -> str:
        if (family, kind) not in made:
            model = checkpoints.load(base_checkpoint(family), LEVELS[kind])
            if kind in ("dense", "sparse", "sparser"):
                fill_memory(model)
            target = str(tmp_path_factory.mktemp("sleep") / f"{family}-{kind.replace(' ', '-')}")
            checkpoints.save(model, make_tokenizer(), target)
            made[family, kind] = target
        return made[family, kind]

    return path


@pytest.fixture(scope="session")
def rollout():
    """checkpoint -> RolloutWorker, one per checkpoint, alive until the session ends: engines of one
    process share process groups, so none may be shut down while another is used.
    """
    from actors.rollout import RolloutWorker  # 10 s: only where a test needs an engine

    live: dict[str, RolloutWorker] = {}

    def worker(checkpoint: str) -> RolloutWorker:
        if checkpoint not in live:
            live[checkpoint] = RolloutWorker(checkpoint, dtype="float32", engine=ENGINE, seed=0)
        return live[checkpoint]

    yield worker
    for engine in live.values():
        engine.close()


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No hub, no cache of one, no base trained before, an empty working folder."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)


def as_at_a_terminal() -> None:
    """For `preexec_fn`: what runs in the background of a script, or under nohup, ignores these, and
    so do its children.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
