"""Ask a slept model the questions that it was trained on, closed book.

    sleep-rl export RUN MODEL
    .venv/bin/python -m benchmarks.trained_questions RUN MODEL [--night N] [--questions N]

RUN is a run of task documents whose baselines train on the data of the night, which keeps that data
in RUN/sequences. Printed is the share of its questions in the model's form whose greedy answer has
at least two thirds of the words of the answer learned: of the teacher's own answers, and of given
ones, i.e. parts of a sentence. Beside the recall of the evaluation it tells whether facts are not
learned, or learned and not found in other words.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sleep_rl.night.saved_data import load_data
from sleep_rl.night.sequences import Origin
from sleep_rl.tasks.grading import RECALL_THRESHOLD, gold_recall

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sleep_rl.contracts.records import Ids
    from sleep_rl.night.sequences import TeacherSequence

MOST_TOKENS = 24  # of an answer
BATCH = 32


def asked(sequences: Sequence[TeacherSequence], count: int) -> list[TeacherSequence]:
    """Return at most `count` sequences about documents, drawn with a fixed seed. Those of the other
    form (generation.other_form), the rarer one, are left out.
    """
    about = [s for s in sequences if s.origin == Origin.DOCUMENT]
    forms = Counter(s.bare_T for s in about)
    usual = max(forms, key=forms.__getitem__)
    found = [s for s in about if s.bare_T == usual]
    return random.Random(0).sample(found, min(count, len(found)))


@torch.no_grad()
def answers(model: Any, tokenizer: Any, prompts_N: Sequence[Ids]) -> list[str]:
    """Return the greedy answer to each prompt."""
    texts_N = []
    for start in range(0, len(prompts_N), BATCH):
        batch = tokenizer.pad(
            {"input_ids": [list(ids) for ids in prompts_N[start : start + BATCH]]},
            padding_side="left",
            return_tensors="pt",
        )
        out_BT = model.generate(**batch, max_new_tokens=MOST_TOKENS, do_sample=False)
        new_BT = out_BT[:, batch["input_ids"].shape[1] :]
        texts_N += tokenizer.batch_decode(new_BT, skip_special_tokens=True)
    return texts_N


def recalled(
    sequences: Sequence[TeacherSequence], texts_N: Sequence[str], tokenizer: Any
) -> dict[str, tuple[int, int]]:
    """Return source of the answer -> (questions answered as learned, questions)."""
    right: Counter = Counter()
    total: Counter = Counter()
    for sequence, text in zip(sequences, texts_N, strict=True):
        learned = tokenizer.decode(sequence.sequence_T[sequence.x_length :])
        for token in tokenizer.all_special_tokens:
            learned = learned.replace(token, "")
        source = "given" if sequence.given else "the teacher's own"
        right[source] += gold_recall(learned.strip(), text) >= RECALL_THRESHOLD
        total[source] += 1
    return {source: (right[source], total[source]) for source in sorted(total)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("model", help="folder written by sleep-rl export")
    parser.add_argument("--night", type=int, default=1)
    parser.add_argument("--questions", type=int, default=200, help="at most so many")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=True).eval()
    sequences = asked(load_data(args.run, args.night).new, args.questions)
    prompts_N = [s.bare_T + s.sequence_T[: s.x_length] for s in sequences]
    texts_N = answers(model, tokenizer, prompts_N)
    for source, (right, total) in recalled(sequences, texts_N, tokenizer).items():
        print(f"answers {source}: {right} of {total} ({right / total:.2f})")


if __name__ == "__main__":
    main()
