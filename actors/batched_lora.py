"""Many isolated LoRA copies of one frozen model, trained in one forward pass (the inner loop of
paper.md section 4).

Copies share nothing but the frozen base: each has its own factors, its own rows, learning rate,
optimizer moments and gradient norm. Shapes: N copies, B sequences of a forward pass (one per copy
and step), T tokens, R rank, I and O the inputs and outputs of a linear layer, P all factors of a
copy.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sleep_rl.contracts.records import Trial
from sleep_rl.objectives import token_logprobs

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# AdamW and gradient clipping as SEAL's trainer has them by default
BETAS, EPSILON, CLIP = (0.9, 0.999), 1e-8, 1.0
LOGIT_CHUNK = 1024


class Copies:
    """N LoRA copies of `model`: y = W x + alpha/R B A x in every layer of TARGETS. B = 0: a new
    copy is the model.
    """

    def __init__(self, model: nn.Module, seeds_N: list[int], rank: int, alpha: float):
        self.model, self.rank, self.alpha = model, rank, alpha
        self.layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in TARGETS
        }
        self.a: dict[str, Tensor] = {}
        self.b: dict[str, Tensor] = {}
        generators, shapes = [torch.Generator().manual_seed(seed) for seed in seeds_N], []
        for name, layer in self.layers.items():
            o, i = layer.weight.shape
            shapes += [(self.a, name, (rank, i)), (self.b, name, (o, rank))]
        # All factors of a copy lie in one row, which a step of the optimizer reads and writes once.
        # In float32 whatever the model's dtype: in bfloat16 steps of a usual learning rate would
        # round to nothing.
        size, device = (
            sum(math.prod(shape) for *_, shape in shapes),
            next(model.parameters()).device,
        )
        self.values_NP = torch.zeros(len(seeds_N), size, device=device)
        start = 0
        for stack, name, shape in shapes:
            end = start + math.prod(shape)
            place = self.values_NP[:, start:end].unflatten(1, shape)
            if stack is self.a:  # peft's: Kaiming uniform with a = sqrt(5)
                bound = shape[1] ** -0.5
                place.copy_(
                    torch.stack(
                        [
                            torch.empty(shape).uniform_(-bound, bound, generator=g)
                            for g in generators
                        ]
                    )
                )
            stack[name] = place.detach().requires_grad_()
            start = end

    def factors(self) -> list[Tensor]:
        """Every trained tensor, in the order of a row; the first dimension is the copy."""
        return [stack[name] for name in self.layers for stack in (self.a, self.b)]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within the block sequence n of a forward pass goes through copy n."""

        def hook(name: str):
            def add(_: nn.Module, inputs: tuple[Tensor, ...], y_BTO: Tensor) -> Tensor:
                a_NIR, b_NRO = (
                    t.transpose(1, 2).to(y_BTO.dtype) for t in (self.a[name], self.b[name])
                )
                return y_BTO + (self.alpha / self.rank) * (inputs[0] @ a_NIR @ b_NRO)

            return add

        handles = [layer.register_forward_hook(hook(name)) for name, layer in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def save(self, number: int, folder: Path) -> None:
        """One copy as a peft adapter, which vLLM loads."""
        tensors = {
            f"base_model.model.{name}.lora_{part}.weight": stack[name][number]
            .detach()
            .float()
            .cpu()
            .contiguous()
            for part, stack in (("A", self.a), ("B", self.b))
            for name in self.layers
        }
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(
            json.dumps(
                {
                    "peft_type": "LORA",
                    "task_type": "CAUSAL_LM",
                    "r": self.rank,
                    "lora_alpha": self.alpha,
                    "bias": "none",
                    "target_modules": sorted({name.rsplit(".", 1)[-1] for name in self.layers}),
                }
            )
        )


def train(
    model: nn.Module, trials_N: list[Trial], rank: int, alpha: float, pad: int
) -> tuple[Copies, list[float]]:
    """SFT of one copy per trial, all at once: batch 1, its rows in a new order every epoch,
    learning rate falling linearly to zero over its own steps. Padding has no loss. Returns the
    copies and the last loss of each, in nats per token (NaN and infinity included: the caller says
    what failed).
    """
    copies = Copies(model, [trial.seed for trial in trials_N], rank, alpha)
    plans = [_order(trial) for trial in trials_N]
    optimizer = StackedAdamW(copies)
    device = next(model.parameters()).device
    last_N = [math.nan] * len(trials_N)
    with copies.attached():
        for step in range(max(map(len, plans))):
            alive_N = [step < len(plan) for plan in plans]
            rows = [plan[min(step, len(plan) - 1)] for plan in plans]
            loss_N = _losses(model, rows, pad, device)
            (loss_N * torch.tensor(alive_N, device=device)).sum().backward()
            optimizer.step(
                [trial.lr * max(1 - step / len(plan), 0.0) for trial, plan in zip(trials_N, plans)],
                alive_N,
            )
            for n, (loss, plan) in enumerate(zip(loss_N.tolist(), plans)):
                last_N[n] = loss if step < len(plan) else last_N[n]
    return copies, last_N


def _order(trial: Trial) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The row of each step."""
    rng = random.Random(f"rows {trial.seed}")
    return [row for _ in range(trial.epochs) for row in rng.sample(trial.rows, len(trial.rows))]


def _losses(
    model: nn.Module, rows_N: list[tuple[tuple[int, ...], tuple[int, ...]]], pad: int, device
) -> Tensor:
    """[N] mean cross entropy of each row's completion, nats per token; logits of LOGIT_CHUNK
    positions live at once.
    """
    width = max(len(prompt) + len(completion) for prompt, completion in rows_N)
    ids_NT = torch.full((len(rows_N), width), pad, dtype=torch.long)
    mask_NT, row_P, place_P = torch.zeros_like(ids_NT), [], []
    for n, (prompt, completion) in enumerate(rows_N):
        end = len(prompt) + len(completion)
        ids_NT[n, :end] = torch.tensor(prompt + completion)
        mask_NT[n, :end] = 1
        row_P += [n] * len(completion)
        place_P += range(n * width + len(prompt) - 1, n * width + end - 1)
    ids_NT, mask_NT = ids_NT.to(device), mask_NT.to(device)
    rows, places = torch.tensor(row_P, device=device), torch.tensor(place_P, device=device)
    hidden_NTD = model.model(
        input_ids=ids_NT, attention_mask=mask_NT, use_cache=False
    ).last_hidden_state
    token_P = ids_NT.flatten()[places + 1]
    logp_P = token_logprobs(model.lm_head, hidden_NTD.flatten(0, 1)[places], token_P, LOGIT_CHUNK)
    counts_N = torch.bincount(rows, minlength=len(rows_N))
    return torch.zeros(len(rows_N), device=device).index_add(0, rows, -logp_P) / counts_N


class StackedAdamW:
    """AdamW without weight decay for copies. Each has its own learning rate and its own gradient
    norm, clipped to CLIP; one that is not alive stays as it is.
    """

    def __init__(self, copies: Copies):
        self.factors, self.grads_NP = copies.factors(), torch.zeros_like(copies.values_NP)
        self.rows = [nn.Parameter(row) for row in copies.values_NP]  # they share its storage
        self.adamw = torch.optim.AdamW(
            [{"params": [row]} for row in self.rows],
            betas=BETAS,
            eps=EPSILON,
            weight_decay=0.0,
            fused=True,
        )

    @torch.no_grad()
    def step(self, lr_N: list[float], alive_N: list[bool]) -> None:
        """One step of every copy that is alive; drops the gradients."""
        torch.cat([factor.grad.flatten(1) for factor in self.factors], dim=1, out=self.grads_NP)
        norm_N = torch.linalg.vector_norm(self.grads_NP, dim=1)
        self.grads_NP *= (CLIP / (norm_N + 1e-6)).clamp(max=1.0)[:, None]
        for row, grad, group, lr, alive in zip(
            self.rows, self.grads_NP, self.adamw.param_groups, lr_N, alive_N, strict=True
        ):
            row.grad, group["lr"] = grad if alive else None, lr
        self.adamw.step()
        for factor in self.factors:
            factor.grad = None
