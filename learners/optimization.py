"""One optimizer step on a batch: gradients of all passes, metrics, learning rate."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from learners.batch import collate, loss_weights, without_prompt_loss
from learners.engine import TrainingEngine, reduce_sum
from learners.passes import FILLER, assign_to_ranks, micro_batches, student_length
from learners.teacher import Teacher
from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import RunError
from sleep_rl.contracts.records import Metrics, StepResult, TrainingRow


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Return the learning rate of `step` (from 0): linear warm-up over at most half of the steps,
    then linear decay to zero.
    """
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * (steps - step) / max(steps - warmup, 1)


class BatchOptimizer:
    """Takes optimizer steps of the plastic experts. Every rank gets the whole batch and computes
    its share of the rows.
    """

    def __init__(
        self,
        engine: TrainingEngine,
        teacher: Teacher,
        config: Config,
        *,
        pad: int,
        device: str,
        rank: int,
        world: int,
    ):
        self.engine = engine
        self.teacher = teacher
        self.config = config
        self.pad = pad
        self.device = device
        self.rank = rank
        self.world = world

    def step(self, batch_N: list[TrainingRow], lr: float, seeding: bool) -> StepResult:
        """Take one step on L_KS (equation 6), or without `seeding` on the cross entropy of the
        completions, with the same weights of x and y.

        Raises RunError on a loss that is not finite; no parameter is changed then.
        """
        began = time.perf_counter()
        prompt_weight = self.config.objective.prompt_weight
        tokens = sum(len(row.completion_T) for row in batch_N)
        if prompt_weight == 0:
            batch_N = [without_prompt_loss(row) for row in batch_N]
        mean = self.config.objective.mean
        positions = sum(sum(loss_weights(row, prompt_weight, mean)) for row in batch_N)
        rewarded = sum(len(row.completion_T) for row in batch_N if row.advantage is not None)
        totals, divergence_N = self._backward(batch_N, positions, rewarded, prompt_weight, seeding)
        if not math.isfinite(totals["loss"]):
            raise RunError(
                f"learner: the loss is {totals['loss']} at learning rate {lr:.2g}, lower it "
                "(sleep.lr, baselines.lr, dream.policy.lr); nothing of this night was applied"
            )
        totals.update(
            grad_norm=self.engine.step(lr),
            lr=lr,
            tokens_trained=float(tokens),
            sequences=float(len(batch_N)),
            seconds=time.perf_counter() - began,
        )
        return StepResult(_metrics(totals, rewarded), divergence_N)

    def _backward(
        self,
        batch_N: list[TrainingRow],
        positions: float,
        rewarded: int,
        prompt_weight: float,
        seeding: bool,
    ) -> tuple[dict[str, float], list[float]]:
        """Accumulate the gradients of all micro batches. Return (sums over the batch, including the
        loss; divergence of each row's answer in nats per token).
        """
        counts = [torch.tensor(float(n), device=self.device) for n in (positions, rewarded)]
        sums: dict[str, Tensor] = {}
        divergence_N = torch.zeros(len(batch_N), device=self.device)
        shares = assign_to_ranks([student_length(row) for row in batch_N], self.world)
        parts = micro_batches(batch_N, shares, self.rank, self.config.learners.pass_tokens)
        self.engine.module.trunk.expect(batch_N)
        teacher_N = self._teacher_hidden(batch_N, shares) if seeding else {}
        for i, part in enumerate(parts):
            batch = collate(
                part.rows,
                part.weights,
                self.pad,
                self.device,
                teacher_B=[teacher_N.get(n) for n in part.numbers] if seeding else None,
                prompt_weight=prompt_weight,
                mean=self.config.objective.mean,
            )
            loss, measured = self.engine(batch, *counts, seeding)
            # DeepSpeed averages gradients over ranks; the counts are already global.
            self.engine.backward(loss * self.world, last=i == len(parts) - 1)
            if seeding:
                rows = measured.pop("rows")
                if FILLER not in part.numbers:
                    divergence_N[part.numbers] = rows
            for name, value in {**measured, "loss": loss.detach()}.items():
                before = sums.get(name, torch.zeros_like(value))
                sums[name] = torch.maximum(before, value) if name == "ratio_max" else before + value
        if self.world > 1:
            torch.distributed.all_reduce(divergence_N)
        return reduce_sum(sums, maxima=("ratio_max",)), divergence_N.tolist()

    def _teacher_hidden(
        self, batch_N: list[TrainingRow], shares: list[list[int]]
    ) -> dict[int, Tensor | None]:
        """Return row number -> the teacher's last hidden states [T, D] of this rank's rows."""
        rows = [[batch_N[n] for n in share] for share in shares]
        min_passes = 0
        if self.config.learners.zero_stage == 3:
            # it gathers the base in each pass, so all ranks must make equally many
            min_passes = max(self.teacher.pass_count(each) for each in rows)
        hidden = self.teacher.hidden(rows[self.rank], min_passes)
        return dict(zip(shares[self.rank], hidden, strict=True))


def _metrics(totals: dict[str, float], rewarded: int) -> Metrics:
    """Return the means of the sums over all ranks, under their names in the journal."""
    out = {
        k: totals[k] for k in ("loss", "grad_norm", "lr", "tokens_trained", "sequences", "seconds")
    }
    means = {
        "divergence": ("divergence_sum", "divergence_count"),
        "divergence_replay": ("replay_sum", "replay_count"),
        "logprob_gap": ("gap_sum", "stale_count"),
        "is_ratio_mean": ("ratio_sum", "stale_count"),
    }
    for name, (total, count) in means.items():
        if totals.get(count, 0.0) > 0:
            out[name] = totals[total] / totals[count]
    if rewarded and "policy_sum" in totals:
        out["policy_loss"] = totals["policy_sum"] / rewarded
    if totals.get("stale_count", 0.0) > 0:
        out["is_ratio_max"] = totals["ratio_max"]
    return out
