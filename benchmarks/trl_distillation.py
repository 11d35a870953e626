"""Measure the training steps of TRL's DistillationTrainer on SmolLM2, on the rows of `night_parts`.

    .venv/bin/python -m pip install --target /tmp/trl-env --no-deps trl==1.16.0 accelerate peft
    PYTHONPATH=/tmp/trl-env .venv/bin/python -m benchmarks.trl_distillation [--steps 4] [KEY=VALUE]

Model, rows, lengths, batch and data type are those of `benchmarks.night_parts`, and so are the
tokens that are counted: what the student reads. The trainer distils on policy only, so here the
rows take the place of what its student would generate; everything after that is TRL's own. The
divergence is the forward KL over the full vocabulary, as in a night. Two updates are measured: LoRA
on the MLPs of the layers that have memory in a night, of about as many parameters as the new
expert, and all parameters of the model.

Different from a night: the trainer's teacher reads what the student reads, without the document;
nothing is cached; and all rows are one pass, padded to the longest prompt and the longest answer.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

from benchmarks.matmul_work import Decoder
from benchmarks.night_parts import decoder_of, print_table
from benchmarks.smollm2_rows import SmolNight, student_tokens
from sleep_rl.contracts.records import TrainingRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback

MISSING = (
    "TRL is missing: .venv/bin/python -m pip install --target /tmp/trl-env --no-deps trl==1.16.0 "
    "accelerate peft, then run this with PYTHONPATH=/tmp/trl-env"
)
UPDATES = ("lora", "full")
LORA_ON = ("gate_proj", "up_proj", "down_proj")
STEPS_ONLY: dict[str, Any] = {
    "beta": 0.0,  # forward KL
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "report_to": [],
    "save_strategy": "no",
    "logging_steps": 10**6,
    "use_cpu": True,
    "disable_tqdm": True,
}
"""Options of TRL's trainer on a CPU, without anything beside its optimizer steps."""
LEARNING_RATE = 1e-5  # the speed does not depend on it


def lora_rank(decoder: Decoder) -> int:
    """Return the rank of LoRA on a layer's MLP with about as many parameters as an expert."""
    per_rank = 3 * (decoder.shape.hidden + decoder.shape.intermediate)
    return max(round(decoder.expert_parameters / per_rank), 1)


def lora_config(decoder: Decoder) -> Any:
    """Return peft's config of LoRA in the layers with memory."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora_rank(decoder),
        lora_alpha=lora_rank(decoder),
        target_modules=list(LORA_ON),
        layers_to_transform=list(range(decoder.first_layer, decoder.shape.layers)),
        layers_pattern="layers",
    )


def load_model(base: str, dtype: str) -> PreTrainedModel:
    """Return the base model in this data type."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))


def step_clock(seconds: list[float]) -> TrainerCallback:
    """Return a callback that adds the duration of every optimizer step to `seconds`."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.began)

    return Clock()


def trainer_on(rows: list[TrainingRow]) -> type:
    """Return the trainer for given rows: prompt n of its data set stands for rows[n]."""
    from trl import DistillationTrainer

    class GivenRows(DistillationTrainer):
        def _generate(self, prompts: list[str]) -> tuple:
            chosen = [rows[int(prompt)] for prompt in prompts]
            prompt_ids = [list(row.prompt_T) for row in chosen]
            completion_ids = [list(row.completion_T) for row in chosen]
            return prompt_ids, completion_ids, None, None, []

    return GivenRows


def train(night: SmolNight, batches: list[list[TrainingRow]], update: str) -> tuple[int, list]:
    """Return (trainable parameters, seconds of each step) of one step per batch."""
    from datasets import Dataset
    from trl import DistillationConfig

    from sleep_rl.model import checkpoints

    dtype = night.config.model.dtype
    rows = [row for batch in batches for row in batch]
    seconds: list[float] = []
    # all parameters are float32 under autocast, which is TRL's default; a frozen base is not
    student = load_model(night.base, dtype if update == "lora" else "float32")
    tokenizer = checkpoints.load_tokenizer(night.base, student.config.vocab_size)
    tokenizer.padding_side = "left"
    with tempfile.TemporaryDirectory() as folder:
        config = DistillationConfig(
            folder,
            per_device_train_batch_size=len(batches[0]),
            max_steps=len(batches),
            shuffle_dataset=False,
            learning_rate=LEARNING_RATE,
            bf16=dtype == "bfloat16",
            **STEPS_ONLY,
        )
        trainer = trainer_on(rows)(
            model=student,
            teacher_model=load_model(night.base, dtype),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": [str(n) for n in range(len(rows))]}),
            processing_class=tokenizer,
            peft_config=lora_config(decoder_of(night)) if update == "lora" else None,
            callbacks=[step_clock(seconds)],
        )
        trainer.train()
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    return trained, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4, help="after one that does not count")
    parser.add_argument("--update", choices=UPDATES, help="without it one after the other")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    night = SmolNight(arguments.overrides)
    threads = night.config.learners.threads
    os.environ.update(OMP_NUM_THREADS=str(threads), HF_HUB_OFFLINE="1")
    try:
        import trl
    except ModuleNotFoundError:
        sys.exit(MISSING)
    import torch

    torch.set_num_threads(threads)
    batches = night.batches(arguments.steps + 1)
    batches.insert(0, batches.pop())  # the rows of the step that does not count, as in night_parts
    tokens = statistics.fmean(map(student_tokens, batches[1:]))
    experts = (night.shape.layers - night.config.model.first_layer) * (
        decoder_of(night).expert_parameters
    )
    print(
        f"TRL {trl.__version__}, DistillationTrainer, {night.config.model.dtype}, {threads} "
        f"threads, {len(batches[0])} rows a step with {tokens:.0f} tokens; a night's new expert "
        f"has {experts:,} parameters"
    )
    table = [("update", "parameters", "seconds a step", "tokens/s")]
    for update in [arguments.update] if arguments.update else UPDATES:
        trained, seconds = train(night, batches, update)
        mean = statistics.fmean(seconds[1:])
        table.append((update, f"{trained:,}", f"{mean:.2f}", f"{tokens / mean:.0f}"))
    print_table(table)


if __name__ == "__main__":
    main()
