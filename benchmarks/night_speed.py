"""Measure the optimizer steps of a night on a language model of SmolLM2-135M's shape.

    .venv/bin/python benchmarks/night_speed.py [--steps 12] [--threads 1] [section.key=value ...]

One learner in this process, float32, random weights: 30 layers of 576, vocabulary 49,152. A step
has 8 new sequences about 8 documents, 4 that the student sampled, 6 of self-replay and 2 reading
rows; each document has 24 sequences, so that they come again within the night. Keys are those of a
config, e.g. learners.pass_tokens=512 learners.gradient_checkpointing=true model.memory_layers=20.

Printed are the sequences' own tokens (the student's side) per second of processor time, which other
work on the machine disturbs little, and how many tokens the layers computed, padding included.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import socket
import tempfile
import time
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from learners.worker import LearnerWorker
    from sleep_rl.contracts.records import TrainingRow

SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
DOCUMENTS = 8
SEQUENCES = 24  # about each document
HEADER = (1, 3, 4, 5)  # what student and teacher continue


def make_checkpoint(folder: str, levels: list[dict]) -> str:
    """Return the path of a sleep checkpoint with random weights and a tokenizer of one word."""
    import transformers
    from tokenizers import Tokenizer, models

    from sleep_rl.model import checkpoints

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 2}, unk_token="<pad>"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"
    )
    checkpoints.save(model, tokenizer, f"{folder}/base")
    return checkpoints.expand(f"{folder}/base", f"{folder}/sleep", levels)


class Night:
    """The rows of a night: what is drawn again is the same row."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.documents = [self.tokens(120, 240) for _ in range(DOCUMENTS)]
        self.written = [self.row(document) for document in self.documents for _ in range(SEQUENCES)]
        self.replayed = [self.row(()) for _ in range(60)]

    def tokens(self, low: int, high: int) -> tuple[int, ...]:
        """Return random ids."""
        count = self.rng.randint(low, high)
        return tuple(self.rng.randrange(6, SHAPE["vocab_size"]) for _ in range(count))

    def row(self, document: tuple[int, ...], **fields) -> TrainingRow:
        """Return a row on a sequence of 20 to 80 tokens about `document`."""
        from sleep_rl.contracts.records import TrainingRow

        teacher_T = (1, *document, *HEADER[1:]) if document else ()
        return TrainingRow(HEADER, self.tokens(20, 80), teacher_T, replay=not document, **fields)

    def batch(self) -> list[TrainingRow]:
        """Return the rows of a step."""
        from dataclasses import replace

        rows = self.rng.sample(self.written, 8) + self.rng.sample(self.replayed, 6)
        for document in self.rng.sample(self.documents, 4):
            sampled = self.row(document, advantage=0.5)
            rows.append(replace(sampled, behaviour_T=(-5.0,) * len(sampled.completion_T)))
        for row in self.rng.sample(self.written, 2):
            rows.append(replace(row, prompt_T=row.teacher_T, teacher_T=(), replay=True))
        return rows


class Counter:
    """Counts what the first and the last layer of a decoder compute, padding included."""

    def __init__(self, layers: Any):
        self.tokens = {"first": 0, "last": 0}
        self.passes = 0
        layers[0].register_forward_pre_hook(partial(self._count, "first"))
        layers[-1].register_forward_pre_hook(partial(self._count, "last"))

    def _count(self, name: str, _: Any, inputs: tuple) -> None:
        self.tokens[name] += inputs[0].shape[0] * inputs[0].shape[1]
        self.passes += name == "last"


def single_rank() -> dict[str, str]:
    """Return the environment of the only rank of a learner."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    return place | {"MASTER_PORT": str(port)}


def start(threads: int, overrides: list[str]) -> LearnerWorker:
    """Return a learner in this process on a model with random weights."""
    from actors.environment import cpu_environment

    os.environ.update(cpu_environment(threads), **single_rank(), HF_HUB_OFFLINE="1")
    from learners.worker import LearnerWorker
    from sleep_rl.config.loader import load
    from sleep_rl.model.memory_shape import memory_of

    fixed = [f"learners.threads={threads}", "model.experts=1", "model.top_k=1"]
    fixed += ["sleep.on_full=recycle_oldest", "sleep.lr=1e-3"]
    config = load("configs/toy.yaml", [*fixed, *overrides])
    with tempfile.TemporaryDirectory() as folder:
        return LearnerWorker(make_checkpoint(folder, memory_of(config)), config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    learner = start(arguments.threads, arguments.overrides)
    counter = Counter(learner.model.model.layers)
    night = Night(seed=0)
    learner.open_night(1)
    tokens = 0
    seconds = []
    for step in range(arguments.steps):
        rows = night.batch()
        tokens += sum(len(row.prompt_T) + len(row.completion_T) for row in rows)
        began = time.process_time()
        metrics = learner.seed_step(rows, step, arguments.steps).metrics
        seconds.append(time.process_time() - began)
        print(f"step {step}: {seconds[-1]:.1f} s, loss {metrics['loss']:.5f}", flush=True)
    count = len(seconds)
    late = seconds[count // 2 :]
    print(
        f"{sum(seconds) / count:.2f} CPU s a step, {sum(late) / len(late):.2f} in the second half; "
        f"{tokens / sum(seconds):.0f} tokens/s of {tokens / count:.0f} tokens a step"
    )
    print(
        f"computed a step: {counter.tokens['first'] / count:.0f} tokens in the first layer, "
        f"{counter.tokens['last'] / count:.0f} in the last, in {counter.passes / count:.1f} passes;"
        f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB at most"
    )


if __name__ == "__main__":
    main()
