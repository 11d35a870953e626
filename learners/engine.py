"""The DeepSpeed engine of one learner rank: start, reset between nights, one optimizer step. No
other module imports deepspeed.
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
    """Join the learners' process group (gloo on CPU, NCCL on GPU) that the environment describes; a
    second call in one process does nothing.
    """
    if device == "cpu":
        # Without this DeepSpeed compiles a shared-memory all-reduce at first use: minutes, and a
        # C++ compiler. Gloo carries the megabytes of an expert's gradients as well. It is needed
        # for a group that vLLM began in this process, too: `deepspeed.initialize` joins that one.
        deepspeed.ops.__compatible_ops__ = {}
    if dist.is_initialized():
        return
    deepspeed.init_distributed("nccl" if device == "cuda" else "gloo", verbose=False)


def deepspeed_config(learners: Learners, sleep: Sleep, *, bf16: bool, largest: int) -> dict:
    """Return the engine's options; `largest`: elements of the largest plastic tensor.

    The learning rate is set per step, and sums are normalised by global token counts, so DeepSpeed
    neither schedules nor averages over micro batches.
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


class Engine:
    """Trains the plastic experts of a `Seeding` module and nothing else."""

    def __init__(self, module: nn.Module, plastic: list[nn.Parameter], options: dict):
        self.plastic = plastic
        self.engine, *_ = deepspeed.initialize(
            model=module, model_parameters=plastic, config=options
        )
        self.module = module

    def __call__(self, *inputs):
        return self.engine(*inputs)

    def reset(self, values: list[Tensor]) -> None:
        """Begin a night: set the plastic parameters to `values`, and empty the optimizer."""
        for state in self._adam.state.values():
            for tensor in state.values():
                # in place: ZeRO's fragments point to these tensors; Adam's step count is among them
                tensor.zero_()
        self._set(values)

    def _set(self, values: list[Tensor]) -> None:
        with torch.no_grad(), deepspeed.zero.GatheredParameters(self.plastic, modifier_rank=0):
            for parameter, value in zip(self.plastic, values, strict=True):
                parameter.data.copy_(value)
        with torch.no_grad():
            for parameter, value in zip(self.plastic, values, strict=True):
                # ZeRO's and bf16's own fp32 copy, where there is one
                safe_set_full_fp32_param(parameter, value.to(parameter.device, torch.float32))

    @property
    def _adam(self) -> torch.optim.Optimizer:
        """The optimizer itself, which ZeRO and bf16 wrap."""
        return getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)

    def state(self) -> dict[str, Tensor]:
        """Return fp32 values and moments of the plastic parameters, whole, and the number of steps.

        Only after a first step. Every rank has to call it.
        """
        out = {STEPS: next(iter(self._adam.state.values()))["step"].detach().clone().cpu()}
        for i, parameter in enumerate(self.plastic):
            # None: there is no copy beside the parameter
            value = safe_get_full_fp32_param(parameter)
            out[f"{i}/value"] = parameter.detach() if value is None else value
            for key in MOMENTS:
                moment = safe_get_full_optimizer_state(parameter, key)
                out[f"{i}/{key}"] = self._adam.state[parameter][key] if moment is None else moment
        return {
            key: tensor.detach().to("cpu", torch.float32, copy=True) for key, tensor in out.items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned on any number of ranks; after `reset`.

        Raises KeyError and RuntimeError for tensors of another model.
        """
        # before a first step there are no moments; a step of 0 makes them, and links them to the
        # parameters
        if not self._adam.state:
            with self.whole():
                self.backward(sum(p.sum() for p in self.plastic) * 0.0, last=True)
            self.step(0.0)
        self._set([state[f"{i}/value"] for i in range(len(self.plastic))])
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
        """Return a context in which every rank can read the plastic parameters; outside it ZeRO-3
        may hold parts of them.
        """
        return deepspeed.zero.GatheredParameters(
            self.plastic, enabled=self.engine.zero_optimization_stage() == 3
        )

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of one micro batch; `last` marks the one after which `step` follows."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss)

    def step(self, lr: float) -> float:
        """Take one optimizer step. Returns the gradient norm before clipping. Raises RunError when
        it is not finite.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        # ZeRO and bf16 keep the norm, plain fp32 does not
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
        """Return the gradient norm for ZeRO stage 0 in fp32, which does not keep one."""
        return float(
            torch.stack([p.grad.norm() for p in self.plastic if p.grad is not None]).norm()
        )


def reduce_sum(values: dict[str, Tensor], maxima: tuple[str, ...] = ()) -> dict[str, float]:
    """Return each value summed over all ranks; for the names in `maxima` the largest."""
    out = {}
    for name, value in values.items():
        value = value.detach().float().clone()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(value, op=dist.ReduceOp.MAX if name in maxima else dist.ReduceOp.SUM)
        out[name] = float(value)
    return out
