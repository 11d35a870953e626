"""Compare the throughput of seeding with that of TRL's DistillationTrainer, with the same model,
batch and lengths, one after the other on this machine.

    .venv/bin/python -m pip install trl==1.16.0    # the `bench` extra
    .venv/bin/python benchmarks/seeding.py

Both distil on policy (lambda = 1) with the forward KL over the full vocabulary, without a reward:
each step samples a batch of completions from the student and trains on them against the frozen
teacher. Both train the only expert of the embedded model (beside the base expert, which is locked).
The throughput is completion tokens, sampled and trained on, per second after warm-up.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sleep_rl.config.schema import Config

BATCH = 40  # completions of a step
LENGTH = 16  # most tokens of a completion
STEPS = 40
WARM_UP = 5  # steps before the clock starts


def embedded_config(*overrides: str) -> Config:
    """Return the config of the embedded task, with one expert."""
    from sleep_rl.config.loader import load

    # one expert is too few for the demo's three nights, of which this is only the first
    one_expert = ["model.experts=1", "model.top_k=1", "sleep.on_full=recycle_oldest"]
    return load("configs/demo.yaml", [*one_expert, *overrides])


def make_prompts() -> list[str]:
    """Return one prompt per completion: the first words of questions about the known people of the
    embedded task. The model generates the rest and the answer.
    """
    from sleep_rl.tasks.registry import make_task

    questions = make_task(embedded_config()).known()
    openings = [" ".join(question.prompt.split()[:3]) for question in questions]
    return [openings[i % len(openings)] for i in range(BATCH * (STEPS + WARM_UP))]


def embedded_base() -> str:
    """Return the path of the embedded task's base model."""
    from cluster.run_workers import base_checkpoint
    from sleep_rl.session.console import Console
    from sleep_rl.tasks.registry import make_task

    config = embedded_config()
    return base_checkpoint(config, make_task(config), Console())


def measure_ours(threads: int) -> dict[str, float]:
    """Return tokens and seconds of two vLLM rollout workers and one DeepSpeed learner on Ray, with
    a verified push after every sleep.steps_per_round steps.
    """
    from cluster.crew import start_crew
    from cluster.runtime.ray_backend import RayBackend
    from cluster.worker_specs import CrewSpec
    from sleep_rl.contracts.records import STUDENT, TEACHER, Request, Sampling, TrainingRow
    from sleep_rl.journal.journal import Journal
    from sleep_rl.model import checkpoints
    from sleep_rl.model.memory_shape import memory_of

    config = embedded_config(
        f"sleep.batch={BATCH}",
        "objective.alpha=1",
        "objective.on_policy=1",
        "replay.share=0",
        f"learners.threads={threads}",
    )
    per_round = config.sleep.steps_per_round
    base = embedded_base()
    tokens = 0
    start = None
    with tempfile.TemporaryDirectory() as folder, RayBackend() as backend:
        checkpoint = checkpoints.expand(base, f"{folder}/checkpoint", memory_of(config), 0)
        journal = Journal(Path(folder) / "metrics.jsonl")
        crew = start_crew(backend, CrewSpec(config, checkpoint, base), journal)
        tokenizer = checkpoints.load_tokenizer(checkpoint, 10**9)
        prompts = [
            tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in make_prompts()
        ]
        sampling = Sampling(LENGTH, 1.0, (tokenizer.eos_token_id,))
        crew.learn.open_night(1)
        crew.push(STUDENT, STUDENT)
        for first_step in range(0, STEPS + WARM_UP + per_round - 1, per_round):
            if start is None and first_step >= WARM_UP:
                start = time.perf_counter()
                tokens = 0
            requests = [
                Request(prompts[i % len(prompts)], (1,), i)
                for i in range(first_step * BATCH, (first_step + per_round) * BATCH)
            ]
            samples = crew.sample(requests, STUDENT, sampling)
            for i in range(per_round):
                rows = [
                    TrainingRow(s.context_T + s.prompt_T, s.completion_T)
                    for s in samples[i * BATCH : (i + 1) * BATCH]
                ]
                result = crew.learn.seed_step(rows, first_step + i, 1000)
                tokens += int(result.metrics["tokens_trained"])
            crew.push(STUDENT, STUDENT)
        seconds = time.perf_counter() - start
        crew.push(TEACHER, TEACHER)
        crew.close()
    return {"tokens": tokens, "seconds": seconds}


def student_and_teacher() -> tuple[PreTrainedModel, PreTrainedModel, Any]:
    """Return (student with one unlocked expert, its teacher, their tokenizer)."""
    from sleep_rl.model import checkpoints
    from sleep_rl.model.memory import FRESH, memory_levels
    from sleep_rl.model.memory_shape import memory_of

    base = embedded_base()
    levels = memory_of(embedded_config())
    student = checkpoints.load(base, levels)
    teacher = checkpoints.load(base, levels)
    for level in memory_levels(student).values():
        level.set_slot_state(1, FRESH)
        for part in (level.router, level.w_in, level.w_out):
            part.requires_grad_(True)
    tokenizer = checkpoints.load_tokenizer(base, 10**9)
    tokenizer.padding_side = "left"
    return student, teacher, tokenizer


def measure_trl(threads: int) -> dict[str, float]:
    """Return tokens and seconds of DistillationTrainer in one process; it generates with
    transformers, because its vLLM modes need a GPU.
    """
    import torch
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    torch.set_num_threads(threads)
    student, teacher, tokenizer = student_and_teacher()
    counts = {"tokens": 0, "start": 0.0, "step": 0}

    class Counting(DistillationTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            counts["step"] += 1
            if counts["step"] == WARM_UP + 1:
                counts.update(start=time.perf_counter(), tokens=0)
            return super().training_step(model, inputs, num_items_in_batch)

        def _generate_and_score_completions(self, inputs):
            out = super()._generate_and_score_completions(inputs)
            counts["tokens"] += int(out["completion_mask"].sum())
            return out

    with tempfile.TemporaryDirectory() as folder:
        config = DistillationConfig(
            folder,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=1,
            max_steps=STEPS + WARM_UP,
            max_completion_length=LENGTH,
            beta=0.0,
            learning_rate=2e-3,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            logging_steps=10**6,
            use_cpu=True,
            disable_tqdm=True,
        )
        data = Dataset.from_dict({"prompt": [f"<bos> {prompt}" for prompt in make_prompts()]})
        trainer = Counting(
            model=student,
            teacher_model=teacher,
            args=config,
            train_dataset=data,
            processing_class=tokenizer,
        )
        trainer.train()
        return {"tokens": counts["tokens"], "seconds": time.perf_counter() - counts["start"]}


def measure_in_process(side: str, threads: int) -> float:
    """Return the tokens per second of "ours" or "trl", measured in a fresh process."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--only", side, "--threads", str(threads)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result = json.loads(lines[0].removeprefix("RESULT "))
    rate = result["tokens"] / result["seconds"]
    print(
        f"{side}: {result['tokens']} tokens in {result['seconds']:.1f} s = {rate:.0f} tokens/s",
        flush=True,
    )
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("ours", "trl"))
    parser.add_argument("--threads", type=int, default=2, help="of the learner, and of TRL")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.only:
        measure = {"ours": measure_ours, "trl": measure_trl}[arguments.only]
        print("RESULT " + json.dumps(measure(arguments.threads)), flush=True)
        return
    rates: dict[str, list[float]] = {"ours": [], "trl": []}
    for _ in range(arguments.repeat):  # alternating, so that load on the machine affects both
        for side, values in rates.items():
            values.append(measure_in_process(side, arguments.threads))
    for side, values in rates.items():
        print(
            f"{side:5} mean {statistics.fmean(values):7.0f} tokens/s  range {min(values):.0f} "
            f".. {max(values):.0f}"
        )
    print(f"ratio {statistics.fmean(rates['ours']) / statistics.fmean(rates['trl']):.2f}")


if __name__ == "__main__":
    main()
