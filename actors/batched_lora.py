"""Isolated LoRA copies of one frozen model, trained together in one forward pass (the inner loop of
paper.md section 4).

Copies share only the frozen base: each has its own factors, rows, learning rate, optimizer moments
and gradient norm. Shapes: N copies, B sequences of a forward pass (one per copy
and step, so B = N), T tokens, R rank, I and O the inputs and outputs of a linear layer, F all
factors of a copy, P loss positions of a batch, D hidden units.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sleep_rl.contracts.records import Ids, Trial
from sleep_rl.model.packing import PaddedRows
from sleep_rl.objectives import token_logprobs

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Last component of the names of the linear layers with LoRA factors."""
# AdamW and gradient clipping: defaults of SEAL's trainer
BETAS = (0.9, 0.999)
EPSILON = 1e-8
CLIP = 1.0  # largest gradient norm of a copy
LOGIT_CHUNK = 1024  # positions whose logits are computed at once

Row = tuple[Ids, Ids]
"""(prompt_T, completion_T) of a training sequence; the loss falls on the completion."""


class Copies:
    """N LoRA copies of `model`: y = W x + alpha/R B A x in every layer of TARGETS.

    A is initialised from each copy's seed and B is 0, so a new copy computes what the model does.
    """

    def __init__(self, model: nn.Module, seeds_N: list[int], rank: int, alpha: float):
        self.model = model
        self.rank = rank
        self.alpha = alpha
        self.layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in TARGETS
        }
        self.a: dict[str, Tensor] = {}
        """Layer name -> [N, R, I]."""
        self.b: dict[str, Tensor] = {}
        """Layer name -> [N, O, R]."""
        # All factors of a copy are one row, so that an optimizer step is one tensor operation.
        # float32 for every dtype of the model: in bfloat16 usual optimizer steps would round to 0.
        size = sum(rank * sum(layer.weight.shape) for layer in self.layers.values())
        device = next(model.parameters()).device
        self.values_NF = torch.zeros(len(seeds_N), size, device=device)
        generators_N = [torch.Generator().manual_seed(seed) for seed in seeds_N]
        start = 0
        for name, layer in self.layers.items():
            outputs, inputs = layer.weight.shape
            a_NRI = self._view(start, (rank, inputs))
            a_NRI.copy_(_initial_a(rank, inputs, generators_N))
            start += rank * inputs
            b_NOR = self._view(start, (outputs, rank))
            start += outputs * rank
            self.a[name] = a_NRI.detach().requires_grad_()
            self.b[name] = b_NOR.detach().requires_grad_()

    def _view(self, start: int, shape: tuple[int, int]) -> Tensor:
        """Return [N, *shape], a view of values_NF from column `start`."""
        return self.values_NF[:, start : start + math.prod(shape)].unflatten(1, shape)

    def factors(self) -> list[Tensor]:
        """Return every trained tensor, in the order of a row of values_NF."""
        return [stack[name] for name in self.layers for stack in (self.a, self.b)]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Apply copy n to sequence n of each forward pass within the block."""
        handles = [
            layer.register_forward_hook(self._hook(name)) for name, layer in self.layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        """Return the forward hook that adds the low-rank product to the output of a layer."""

        def add_product(_: nn.Module, inputs: tuple[Tensor, ...], y_BTO: Tensor) -> Tensor:
            a_NIR = self.a[name].transpose(1, 2).to(y_BTO.dtype)
            b_NRO = self.b[name].transpose(1, 2).to(y_BTO.dtype)
            return y_BTO + (self.alpha / self.rank) * (inputs[0] @ a_NIR @ b_NRO)

        return add_product

    def save(self, number: int, folder: Path) -> None:
        """Write copy `number` as a peft adapter, which vLLM loads, into the new `folder`."""
        tensors = {}
        for part, stack in (("A", self.a), ("B", self.b)):
            for name in self.layers:
                factor = stack[name][number].detach().float().cpu().contiguous()
                tensors[f"base_model.model.{name}.lora_{part}.weight"] = factor
        adapter_config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "bias": "none",
            "target_modules": sorted({name.rsplit(".", 1)[-1] for name in self.layers}),
        }
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(adapter_config))


def _initial_a(rank: int, inputs: int, generators_N: list[torch.Generator]) -> Tensor:
    """Return [N, R, I] as peft initialises A: Kaiming uniform with a = sqrt(5)."""
    bound = inputs**-0.5
    return torch.stack(
        [
            torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
            for generator in generators_N
        ]
    )


def train(
    model: nn.Module, trials_N: list[Trial], rank: int, alpha: float, pad: int
) -> tuple[Copies, list[float]]:
    """Fine-tune one copy per trial, all together; return (the copies, the last loss of each).

    Each copy takes steps on one row, in a new order every epoch, with a learning rate that decays
    linearly to zero over its own steps. `pad`: token id of padding, which has no loss. Losses are
    in nats per token and may be NaN or infinite: the caller checks them.
    """
    copies = Copies(model, [trial.seed for trial in trials_N], rank, alpha)
    rows_N = [rows_by_step(trial) for trial in trials_N]
    optimizer = BatchedAdamW(copies)
    device = next(model.parameters()).device
    last_N = [math.nan] * len(trials_N)
    with copies.attached():
        for step in range(max(map(len, rows_N))):
            trained_N = [step < len(rows) for rows in rows_N]
            batch_N = [rows[min(step, len(rows) - 1)] for rows in rows_N]
            loss_N = row_losses(model, batch_N, pad, device)
            (loss_N * torch.tensor(trained_N, device=device)).sum().backward()
            lr_N = [
                trial.lr * max(1 - step / len(rows), 0.0)
                for trial, rows in zip(trials_N, rows_N, strict=True)
            ]
            optimizer.step(lr_N, trained_N)
            for n, loss in enumerate(loss_N.tolist()):
                if trained_N[n]:
                    last_N[n] = loss
    return copies, last_N


def rows_by_step(trial: Trial) -> list[Row]:
    """Return the row of each optimizer step: all rows in each epoch, in random order."""
    rng = random.Random(f"rows {trial.seed}")
    return [row for _ in range(trial.epochs) for row in rng.sample(trial.rows, len(trial.rows))]


def row_losses(model: nn.Module, rows_N: list[Row], pad: int, device: torch.device) -> Tensor:
    """Return [N] mean cross entropy of each row's completion, in nats per token, in one forward
    pass. Logits are computed for LOGIT_CHUNK positions at a time.
    """
    prompts_N = [prompt for prompt, _ in rows_N]
    completions_N = [completion for _, completion in rows_N]
    padded = PaddedRows.of(prompts_N, completions_N, pad, device)
    hidden_NTD = model.model(
        input_ids=padded.ids_BT, attention_mask=padded.mask_BT, use_cache=False
    ).last_hidden_state
    hidden_PD = padded.at_positions(hidden_NTD)
    logp_P = token_logprobs(model.lm_head, hidden_PD, padded.token_P, LOGIT_CHUNK)
    counts_N = torch.bincount(padded.row_P, minlength=len(rows_N))
    return torch.zeros(len(rows_N), device=device).index_add(0, padded.row_P, -logp_P) / counts_N


class BatchedAdamW:
    """AdamW without weight decay for N copies.

    Each copy has its own learning rate and its own gradient norm, clipped to CLIP.
    """

    def __init__(self, copies: Copies):
        self.factors = copies.factors()
        self.grads_NF = torch.zeros_like(copies.values_NF)
        self.rows = [nn.Parameter(row) for row in copies.values_NF]  # they share its storage
        self.adamw = torch.optim.AdamW(
            [{"params": [row]} for row in self.rows],
            betas=BETAS,
            eps=EPSILON,
            weight_decay=0.0,
            fused=True,
        )

    @torch.no_grad()
    def step(self, lr_N: list[float], trained_N: list[bool]) -> None:
        """Update the copies with `trained_N`, and drop all gradients; other copies do not
        change.
        """
        torch.cat([factor.grad.flatten(1) for factor in self.factors], dim=1, out=self.grads_NF)
        norm_N = torch.linalg.vector_norm(self.grads_NF, dim=1)
        self.grads_NF *= (CLIP / (norm_N + 1e-6)).clamp(max=1.0)[:, None]
        for row, grad, group, lr, trained in zip(
            self.rows, self.grads_NF, self.adamw.param_groups, lr_N, trained_N, strict=True
        ):
            row.grad = grad if trained else None
            group["lr"] = lr
        self.adamw.step()
        for factor in self.factors:
            factor.grad = None
