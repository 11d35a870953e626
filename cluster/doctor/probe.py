"""A minimal run in half a minute: expand, sample, one step on L_KS, push, verify. `sleep-rl doctor`
runs it as a process.

    python -m cluster.doctor.probe ray cpu FOLDER      # writes FOLDER/result.json

It uses the real workers, on a random model of two layers.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from cluster.crew import WorkerCrew, start_crew
from cluster.doctor.doctor import RESULT
from cluster.runtime.backend import Backend
from cluster.runtime.local_backend import LocalBackend
from cluster.runtime.ray_backend import RayBackend
from cluster.worker_specs import CrewSpec
from sleep_rl.config.loader import reload
from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import Failure, InputError, RunError
from sleep_rl.contracts.records import STUDENT, TEACHER, Pair, Request, Sampling, TrainingRow
from sleep_rl.journal.journal import Journal, read
from sleep_rl.model import checkpoints
from sleep_rl.model.memory_shape import memory_of

PROMPT = (3, 4, 5)
DOCUMENT = tuple(range(10, 30))
START_S = 600.0
CALL_S = 300.0


def config_of(gpu: bool, folder: Path) -> Config:
    """Return the probe's config. With `gpu`, one rollout worker and one learner share a GPU."""
    share = "0.4" if gpu else "0"
    return reload(
        {},
        "doctor",
        [
            f"model.base={folder / 'base'}",
            "task.days=1",
            "model.experts=2",
            "model.top_k=2",
            "model.d_low=16",
            "model.dtype=float32",
            "sleep.lr=4e-3",
            "rollouts.workers=1",
            f"rollouts.gpus={share}",
            f"learners.gpus={share}",
            "sleep.batch=4",
            "sleep.warmup=0",
            "rollouts.engine={max_model_len: 128, max_num_seqs: 8, kv_cache_memory_bytes: "
            "33554432, "
            "enforce_eager: true}",
        ],
    )


def make_base(path: Path) -> str:
    """Write a random model of two layers with a vocabulary of 64 words; return its path."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    words = ["pad", "eos", *(f"w{i}" for i in range(62))]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="pad"))
    backend.pre_tokenizer = Whitespace()
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            initializer_range=0.1,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    )
    checkpoints.save(
        model,
        PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="pad", eos_token="eos"),
        str(path),
    )
    return str(path)


def probe(backend: Backend, config: Config, folder: Path) -> str:
    """Make one step of each kind that a night makes; return one line with the measurements. Raises
    RunError when a result is wrong.
    """

    base = make_base(folder / "base")
    checkpoint = checkpoints.expand(base, str(folder / "checkpoint"), memory_of(config))
    journal = Journal(folder / "metrics.jsonl")
    with backend:
        crew = start_crew(backend, CrewSpec(config, checkpoint, base, DOCUMENT), journal)
        crew.push(TEACHER, TEACHER)
        crew.learn.open_night(1)
        crew.push(STUDENT, STUDENT)
        first = _sample(crew)
        rewards, metrics = crew.score([Pair(completion, DOCUMENT[:8]) for completion, *_ in first])
        if any(isinstance(reward, Failure) for reward in rewards):
            raise RunError(
                f"the reward worker failed on {metrics['reward_failed']:g} of {len(rewards)} "
                "completions"
            )
        rows = [
            TrainingRow(
                PROMPT,
                completion,
                teacher_T=DOCUMENT + PROMPT,
                advantage=reward - metrics["reward_mean"],
                behaviour_T=logprobs,
            )
            for (completion, logprobs, _), reward in zip(first, rewards, strict=True)
        ]
        loss = crew.learn.seed_step(rows, 0, 2).metrics["loss"]
        crew.push(STUDENT, STUDENT)
        if {version for *_, versions in _sample(crew) for version in versions} != {crew.version}:
            raise RunError(f"samples after the push are not of version {crew.version}")
        crew.learn.commit_night()
        crew.close()
    journal.close()
    push = [r for r in read(folder / "metrics.jsonl") if r["kind"] == "push"][-1]
    if not push["tensors"] or not math.isfinite(loss):
        raise RunError(f"a step with loss {loss} changed {push['tensors']} tensors of the student")
    return (
        f"expanded, sampled {len(first)} completions, scored them, one step (loss "
        f"{loss:.3f}), pushed "
        f"{push['tensors']} tensors in {push['seconds']:.2f} s, verified to "
        f"{push['probe_gap']:.0e} nats"
    )


def _sample(crew: WorkerCrew) -> list[tuple]:
    """Sample four completions from the student; return (tokens, log-probabilities, versions) of
    each.
    """
    samples = crew.sample([Request(PROMPT, seed=seed) for seed in range(4)], STUDENT, Sampling(8))
    failed = [sample.reason for sample in samples if isinstance(sample, Failure)]
    if failed:
        raise RunError(f"{len(failed)} of {len(samples)} samples failed: {failed[0]}")
    return [(sample.completion_T, sample.logprobs_T, sample.versions_T) for sample in samples]


def main(backend: str, device: str, where: str) -> None:
    """Run the probe and write its result to <where>/result.json: {"ok": bool, "message": line}."""
    folder = Path(where)
    try:
        config = config_of(device == "gpu", folder)
        if backend == "local":
            runtime: Backend = LocalBackend(START_S, CALL_S)
        else:
            runtime = RayBackend("local", START_S, CALL_S, str(folder / "logs"))
        result = {"ok": True, "message": probe(runtime, config, folder)}
    except (InputError, RunError) as error:
        result = {"ok": False, "message": str(error)}
    (folder / RESULT).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
