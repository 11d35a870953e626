"""The DeepSpeed engine of one learner rank: start, reset between nights, optimizer steps. The only
module that imports deepspeed.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

os.environ.setdefault("DS_ACCELERATOR", "cuda" if os.environ.get("CUDA_VISIBLE_DEVICES") else "cpu")

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from sleep_rl.config.method import Sleep
from sleep_rl.config.schema import Learners
from sleep_rl.contracts.errors import RunError

# of AdamW: the second moment averages over about 100 steps, and a night has some hundreds
BETAS = (0.9, 0.99)
STEPS = "steps"
MOMENTS = ("exp_avg", "exp_avg_sq")


def join_group(device: str) -> None:
    """Join the learners' process group (gloo on CPU, NCCL on GPU), which the environment describes.
    A second call in one process does nothing.
    """
    if device == "cpu":
        # Otherwise DeepSpeed compiles a shared-memory all-reduce at first use, which takes minutes
        # and a C++ compiler; gloo is fast enough for the megabytes of an expert's gradients. Also
        # needed if vLLM has created a group in this process, which `deepspeed.initialize` joins.
        deepspeed.ops.__compatible_ops__ = {}
    if dist.is_initialized():
        return
    deepspeed.init_distributed("nccl" if device == "cuda" else "gloo", verbose=False)


def deepspeed_config(learners: Learners, sleep: Sleep, *, bf16: bool, largest: int) -> dict:
    """Return DeepSpeed's options; `largest`: number of elements of the largest plastic tensor.

    The learning rate is set per step, and losses are normalised by global token counts, so
    DeepSpeed neither schedules nor averages over micro batches.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,  # passes are formed by tokens, see `passes`
        "gradient_accumulation_steps": 1,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": sleep.lr,
                "betas": list(BETAS),
                "weight_decay": 0.0,
                "torch_adam": True,
            },
        },
        # ZeRO-3 partitions the frozen base; the plastic tensors stay whole on every rank, since
        # levels read them directly.
        "zero_optimization": {
            "stage": learners.zero_stage,
            "stage3_param_persistence_threshold": largest + 1,
        },
        "gradient_clipping": learners.grad_clip,
        "bf16": {"enabled": bf16},
        "steps_per_print": 10**9,
    }


class TrainingEngine:
    """Trains the plastic experts of a `Seeding` module with DeepSpeed's AdamW."""

    def __init__(self, module: nn.Module, plastic: list[nn.Parameter], options: dict):
        self.plastic = plastic
        self.engine, *_ = deepspeed.initialize(
            model=module, model_parameters=plastic, config=options
        )
        self.module = module

    def __call__(self, *inputs):
        return self.engine(*inputs)

    def reset(self, values: list[Tensor]) -> None:
        """Start a night: set the plastic parameters to `values`, and reset the optimizer's
        state.
        """
        for state in self._adam.state.values():
            for tensor in state.values():
                # in place, since ZeRO's fragments refer to these tensors; with Adam's step count
                tensor.zero_()
        self._set(values)

    def _set(self, values: list[Tensor]) -> None:
        with torch.no_grad(), deepspeed.zero.GatheredParameters(self.plastic, modifier_rank=0):
            for parameter, value in zip(self.plastic, values, strict=True):
                parameter.data.copy_(value)
        with torch.no_grad():
            for parameter, value in zip(self.plastic, values, strict=True):
                # the fp32 copy of ZeRO and bf16, if there is one
                safe_set_full_fp32_param(parameter, value.to(parameter.device, torch.float32))

    @property
    def _adam(self) -> torch.optim.Optimizer:
        """Return torch's optimizer, which ZeRO and bf16 wrap."""
        return getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)

    def state(self) -> dict[str, Tensor]:
        """Return unpartitioned fp32 values and moments of the plastic parameters, and Adam's step
        count, by name. Before the first step there are no moments.

        Must be called on every rank.
        """
        steps = next((state["step"] for state in self._adam.state.values()), torch.zeros(()))
        out = {STEPS: steps.detach().clone().cpu()}
        moments = MOMENTS if steps > 0 else ()
        for i, parameter in enumerate(self.plastic):
            # None: there is no fp32 copy
            value = safe_get_full_fp32_param(parameter)
            out[f"{i}/value"] = parameter.detach() if value is None else value
            for key in moments:
                moment = safe_get_full_optimizer_state(parameter, key)
                out[f"{i}/{key}"] = self._adam.state[parameter][key] if moment is None else moment
        return {
            key: tensor.detach().to("cpu", torch.float32, copy=True) for key, tensor in out.items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned on any number of ranks; must be called after `reset`.

        Raises KeyError and RuntimeError for tensors of another model.
        """
        values = [state[f"{i}/value"] for i in range(len(self.plastic))]
        if state[STEPS] == 0:
            self.reset(values)
            return
        # the first step creates the moments; one with learning rate 0 changes no parameter
        if not self._adam.state:
            with self.whole():
                self.backward(sum(p.sum() for p in self.plastic) * 0.0, last=True)
            self.step(0.0)
        self._set(values)
        for i, parameter in enumerate(self.plastic):
            for key in MOMENTS:
                moment = state[f"{i}/{key}"].to(parameter.device)
                if safe_get_full_optimizer_state(parameter, key) is None:  # plain AdamW
                    self._adam.state[parameter][key].copy_(moment)
                else:
                    safe_set_full_optimizer_state(parameter, moment, key)
        for moments in self._adam.state.values():
            moments["step"].copy_(state[STEPS])

    def whole(self) -> AbstractContextManager:
        """Return a context in which every rank can read the whole plastic parameters, which ZeRO-3
        may partition.
        """
        return deepspeed.zero.GatheredParameters(
            self.plastic, enabled=self.engine.zero_optimization_stage() == 3
        )

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate the gradient of one micro batch; `last`: whether `step` follows."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss)

    def step(self, lr: float) -> float:
        """Take one optimizer step; return the gradient norm before clipping. Raises RunError when
        the norm is not finite.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        # ZeRO and bf16 store the norm, plain fp32 does not
        wrapped = hasattr(self.engine.optimizer, "_global_grad_norm")
        norm = None if wrapped else self._norm()
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm() if wrapped else norm)
        if not torch.isfinite(torch.tensor(norm)):
            raise RunError(
                f"learner: gradient norm is {norm}; lower sleep.lr or learners.grad_clip"
            )
        return norm

    def _norm(self) -> float:
        """Return the gradient norm, for ZeRO stage 0 in fp32."""
        return float(
            torch.stack([p.grad.norm() for p in self.plastic if p.grad is not None]).norm()
        )


def reduce_sum(values: dict[str, Tensor], maxima: tuple[str, ...] = ()) -> dict[str, float]:
    """Return the sum of each value over all ranks; for the names in `maxima` the maximum."""
    out = {}
    for name, value in values.items():
        value = value.detach().float().clone()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(value, op=dist.ReduceOp.MAX if name in maxima else dist.ReduceOp.SUM)
        out[name] = float(value)
    return out
