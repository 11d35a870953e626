"""Seeding throughput beside TRL's DistillationTrainer: same model, batch and lengths, on this
machine, one after the other.

    .venv/bin/python -m pip install trl==1.16.0    # the `bench` extra
    .venv/bin/python benchmarks/seeding.py

Both distil on policy (lambda = 1) over the full vocabulary by forward KL, without a reward: each
step samples a batch of completions from the student and trains on them against the frozen teacher.
Both train one expert of the embedded model, preallocated alone (beside the level's own base expert,
which is locked). Counted are completion tokens that were sampled and trained on, over wall-clock
seconds, after warm-up.
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

BATCH, LENGTH, STEPS, WARM = 40, 16, 40, 5


def prompts(count: int) -> list[str]:
    """The beginnings of questions about the known people of the embedded task; the model writes the
    rest and answers.
    """
    from sleep_rl.config.schema import Config
    from sleep_rl.tasks.registry import make_task

    asked = [" ".join(question.prompt.split()[:3]) for question in make_task(Config()).known()]
    return [asked[i % len(asked)] for i in range(count)]


def base() -> str:
    from cluster.launch import base_checkpoint
    from sleep_rl.config.schema import Config
    from sleep_rl.session.console import Console
    from sleep_rl.tasks.registry import make_task

    return base_checkpoint(Config(), make_task(Config()), Console())


def ours(threads: int) -> dict:
    """Two vLLM rollout workers and one DeepSpeed learner on Ray, with a verified push after every
    `per_round` steps.
    """
    from dataclasses import replace

    from cluster.crew import WorkerCrew
    from cluster.launch import memory_of
    from cluster.runtime.ray_backend import RayBackend
    from sleep_rl.config.method import Objective, Replay, Sleep
    from sleep_rl.config.schema import Config, Learners, Model
    from sleep_rl.contracts.records import STUDENT, TEACHER, Request, Sampling, TrainingRow
    from sleep_rl.journal.journal import Journal
    from sleep_rl.model import checkpoints

    config = replace(
        Config(),
        model=Model(experts=1, top_k=1),
        sleep=Sleep(batch=BATCH),
        objective=Objective(alpha=1.0, on_policy=1.0),
        replay=Replay(share=0.0),
        learners=Learners(threads=threads),
    )
    per_round, tokens, checkpoint = config.sleep.steps_per_round, 0, base()
    with tempfile.TemporaryDirectory() as folder, RayBackend() as backend:
        expanded = checkpoints.expand(checkpoint, f"{folder}/checkpoint", memory_of(config), 0)
        crew = WorkerCrew(
            backend,
            config,
            Journal(Path(folder) / "metrics.jsonl"),
            checkpoint=expanded,
            base=checkpoint,
        )
        tokenizer = checkpoints.load_tokenizer(expanded, 10**9)
        texts = [
            tuple(tokenizer(p, add_special_tokens=False)["input_ids"])
            for p in prompts(BATCH * (STEPS + WARM))
        ]
        crew.learn.open_night(1)
        crew.push(STUDENT, STUDENT)
        rounds = []
        for start in range(0, STEPS + WARM + per_round - 1, per_round):
            rounds.append(range(start, start + per_round))
        began = None
        for steps in rounds:
            if began is None and steps.start >= WARM:
                began, tokens = time.perf_counter(), 0
            requests = [
                Request(texts[i % len(texts)], (1,), i)
                for i in range(steps.start * BATCH, steps.stop * BATCH)
            ]
            samples = crew.sample(
                requests, STUDENT, Sampling(LENGTH, 1.0, (tokenizer.eos_token_id,))
            )
            for i in range(per_round):
                rows = [
                    TrainingRow(s.context_T + s.prompt_T, s.completion_T)
                    for s in samples[i * BATCH : (i + 1) * BATCH]
                ]
                tokens += int(
                    crew.learn.seed_step(rows, steps.start + i, 1000).metrics["tokens_trained"]
                )
            crew.push(STUDENT, STUDENT)
        seconds = time.perf_counter() - began
        crew.push(TEACHER, TEACHER)
        crew.close()
    return {"tokens": tokens, "seconds": seconds}


def trl(threads: int) -> dict:
    """DistillationTrainer in one process, generating with transformers (its vLLM modes need a
    GPU).
    """
    import torch
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    from cluster.launch import memory_of
    from sleep_rl.config.schema import Config, Model
    from sleep_rl.model import checkpoints
    from sleep_rl.model.memory import FRESH, memory_levels

    torch.set_num_threads(threads)
    checkpoint = base()
    levels = memory_of(Config(model=Model(experts=1, top_k=1)))
    student, teacher = checkpoints.load(checkpoint, levels), checkpoints.load(checkpoint, levels)
    for level in memory_levels(student).values():
        level.set_slot_state(1, FRESH)
        for part in (level.router, level.w_in, level.w_out):
            part.requires_grad_(True)
    tokenizer = checkpoints.load_tokenizer(checkpoint, 10**9)
    tokenizer.padding_side = "left"
    clock = {"tokens": 0, "began": 0.0, "step": 0}

    class Counting(DistillationTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            clock["step"] += 1
            if clock["step"] == WARM + 1:
                clock.update(began=time.perf_counter(), tokens=0)
            return super().training_step(model, inputs, num_items_in_batch)

        def _generate_and_score_completions(self, inputs):
            out = super()._generate_and_score_completions(inputs)
            clock["tokens"] += int(out["completion_mask"].sum())
            return out

    with tempfile.TemporaryDirectory() as folder:
        config = DistillationConfig(
            folder,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=1,
            max_steps=STEPS + WARM,
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
        data = Dataset.from_dict(
            {"prompt": ["<bos> " + p for p in prompts(BATCH * (STEPS + WARM))]}
        )
        trainer = Counting(
            model=student,
            teacher_model=teacher,
            args=config,
            train_dataset=data,
            processing_class=tokenizer,
        )
        trainer.train()
        return {"tokens": clock["tokens"], "seconds": time.perf_counter() - clock["began"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("ours", "trl"))
    parser.add_argument("--threads", type=int, default=2, help="of the learner, and of TRL")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.only:
        print(
            "RESULT " + json.dumps({"ours": ours, "trl": trl}[arguments.only](arguments.threads)),
            flush=True,
        )
        return
    rates: dict[str, list[float]] = {"ours": [], "trl": []}
    for _ in range(arguments.repeat):  # in turn, so that a loaded machine hurts both
        for side in rates:
            environment = os.environ | {
                "OMP_NUM_THREADS": str(arguments.threads),
                "HF_HUB_OFFLINE": "1",
            }
            done = subprocess.run(
                [sys.executable, __file__, "--only", side, "--threads", str(arguments.threads)],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            line = [text for text in done.stdout.splitlines() if text.startswith("RESULT ")]
            if not line:
                sys.exit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
            result = json.loads(line[0].removeprefix("RESULT "))
            rates[side].append(result["tokens"] / result["seconds"])
            print(
                f"{side}: {result['tokens']} tokens in {result['seconds']:.1f} s = "
                f"{rates[side][-1]:.0f} tokens/s",
                flush=True,
            )
    for side, values in rates.items():
        print(
            f"{side:5} mean {statistics.fmean(values):7.0f} tokens/s  range {min(values):.0f} "
            f".. {max(values):.0f}"
        )
    print(f"ratio {statistics.fmean(rates['ours']) / statistics.fmean(rates['trl']):.2f}")


if __name__ == "__main__":
    main()
