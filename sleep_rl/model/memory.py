"""Memory levels of the Continuum Memory System (paper.md section 2), in pure torch.

The same module is used in the Hugging Face model (`sleep_rl.model.modeling`) and in vLLM's
(`actors.vllm_model`). Exported checkpoints contain this file.

Shape suffixes: S slots of a level (slot 0 is the level's base expert, 1.. are consolidation
experts), L = d_low, D = d_model, `...` any leading dimensions (batch and time, or vLLM's flat
tokens).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sleep_rl.contracts.records import STUDENT, TEACHER

LOCKED = 0
ACTIVE = 1
FRESH = 2
"""States of a slot. LOCKED: contributes nothing. ACTIVE: competes for the router's top-k. FRESH:
always selected, in addition to the top-k, so that unlocking an expert never displaces another one;
also the state of a base expert in use.
"""

BASE_SLOT = 0
PARTS = ("router", "w_in", "w_out")
# The names must not contain gate_proj, up_proj, ..., since vLLM's stacked-parameter mapper rewrites
# such substrings.


class Expert(nn.Module):
    """The trainable parameters of one low-rank expert: router row [D], A = w_in [2L, D], B = w_out
    [L, D].
    """

    def __init__(self, router_D: Tensor, w_in_2LD: Tensor, w_out_LD: Tensor):
        super().__init__()
        self.router = nn.Parameter(router_D.detach().clone())
        self.w_in = nn.Parameter(w_in_2LD.detach().clone())
        self.w_out = nn.Parameter(w_out_LD.detach().clone())


@dataclass
class Patch:
    """The difference of another state from the stored one: its slot states, and some weights."""

    state_S: Tensor
    rows: dict[int, Expert]  # slot -> its weights


class MemoryLevel(nn.Module):
    """Residual sparse mixture of S preallocated low-rank SwiGLU experts in front of a layer's
    pretrained MLP.

    y = x + sum_s g_s(x) B_s^T (silu(A1_s x) * (A2_s x)),   g_s = sigmoid(router_s x) if slot s is
    selected, else 0

    Gates are independent sigmoids, not a softmax: a newly unlocked expert with B = 0 adds exactly
    nothing and does not rescale the others. The stored tensors are the teacher; `patch` is the
    difference of the student, `untouched` that of the checkpoint from which the run began.
    """

    def __init__(
        self, d_model: int, experts: int, d_low: int, top_k: int, fixed_shape: bool = False
    ):
        super().__init__()
        # under torch.compile and CUDA graphs: computes every slot, reads states as tensors only
        self.fixed_shape = fixed_shape
        self.slots = experts + 1
        self.d_low = d_low
        self.top_k = top_k
        self.router = nn.Parameter(torch.empty(self.slots, d_model), requires_grad=False)
        self.w_in = nn.Parameter(torch.empty(self.slots, 2 * d_low, d_model), requires_grad=False)
        self.w_out = nn.Parameter(torch.empty(self.slots, d_low, d_model), requires_grad=False)
        self.register_buffer("state", torch.zeros(self.slots, dtype=torch.int8))
        self.patch: Patch | None = None
        self.untouched: Patch | None = None  # see `remember_checkpoint`
        self.view = TEACHER
        # view -> result of `_host`, so that eager mode skips locked slots without reading the
        # device; cleared by every change of a state
        self._used: dict[str, tuple[int, bool]] = {}

    def set_state(self, state_S: Tensor | Sequence[int]) -> None:
        """Replace the stored slot states."""
        self.state.copy_(torch.as_tensor(state_S))
        self._used.clear()

    def set_slot_state(self, slot: int, state: int, view: str = TEACHER) -> None:
        """Replace one slot's state; in the STUDENT view that of the patch, which must exist."""
        if view == TEACHER:
            self.state[slot] = state
        else:
            self.patch.state_S[slot] = state
        self._used.clear()

    def set_patch(self, patch: Patch | None) -> None:
        """Replace the student; None: teacher and student are equal."""
        self.patch = patch
        self._used.clear()

    def set_view(self, view: str) -> None:
        """Compute with state `view` from here on: TEACHER, STUDENT or CHECKPOINT."""
        self.view = view

    @torch.no_grad()
    def remember_checkpoint(self) -> None:
        """Keep the stored state as that of view CHECKPOINT; only unlocked slots are copied."""
        unlocked = self.state.nonzero().flatten().tolist()
        parts = ([getattr(self, part)[slot] for part in PARTS] for slot in unlocked)
        experts = [Expert(*weights).requires_grad_(False) for weights in parts]
        self.untouched = Patch(self.state.clone(), dict(zip(unlocked, experts, strict=True)))
        self._used.clear()

    @property
    def difference(self) -> Patch | None:
        """The difference of the current view from the stored state; None: there is none.

        Raises RuntimeError in view CHECKPOINT before `remember_checkpoint`.
        """
        if self.view == TEACHER:
            return None
        if self.view == STUDENT:
            return self.patch
        if self.untouched is None:
            raise RuntimeError("the state of the checkpoint is unknown: call remember_checkpoint")
        return self.untouched

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._used.clear()

    def _host(self, state_S: Tensor) -> tuple[int, bool]:
        """Return (number of leading slots that include every unlocked one, whether more slots are
        ACTIVE than top_k).
        """
        if self.fixed_shape:
            return self.slots, self.top_k < self.slots
        if self.view not in self._used:
            states = state_S.tolist()
            used = max((s + 1 for s, state in enumerate(states) if state != LOCKED), default=0)
            self._used[self.view] = used, states.count(ACTIVE) > self.top_k
        return self._used[self.view]

    def rows(self, name: str, count: int) -> Tensor:
        """Return the first `count` slots of part `name` (of PARTS) in the current view;
        differentiable with respect to the patched ones.
        """
        stored = getattr(self, name)[:count]
        difference = self.difference
        if difference is None or not difference.rows:
            return stored
        slots = list(stored.unbind(0))
        for slot, expert in difference.rows.items():
            if slot < count:
                slots[slot] = getattr(expert, name)
        return torch.stack(slots)

    def states(self) -> Tensor:
        """Return the slot states [S] int8 of the current view."""
        difference = self.difference
        return self.state if difference is None else difference.state_S

    def gates(self, logits: Tensor, state: Tensor, choose: bool) -> Tensor:
        """Return the gate of each slot [..., S]: sigmoid(logit) where FRESH or among the top-k
        ACTIVE ones, else 0.

        `choose`: whether more slots are ACTIVE than top_k, so that the top-k must be computed.
        """
        on = state != LOCKED
        if choose:
            active = state == ACTIVE
            score = logits.masked_fill(~active, float("-inf"))
            kth = score.topk(min(self.top_k, logits.shape[-1]), dim=-1).values[..., -1:]
            on = ((score >= kth) & active) | (state == FRESH)
        return torch.sigmoid(logits) * on

    def forward(self, x: Tensor) -> Tensor:
        """Return y [..., D] of x [..., D], in the current view."""
        state = self.states()
        count, choose = self._host(state)
        if count == 0:
            return x
        # The router runs in fp32, to reduce the effect of bf16 rounding on the top-k.
        logits = F.linear(x.float(), self.rows("router", count).float())
        gate = self.gates(logits, state[:count], choose).to(x.dtype)
        a = F.linear(x, self.rows("w_in", count).flatten(0, 1)).unflatten(
            -1, (count, 2, self.d_low)
        )
        h = F.silu(a[..., 0, :]) * a[..., 1, :] * gate.unsqueeze(-1)
        return x + h.flatten(-2) @ self.rows("w_out", count).flatten(0, 1)


@torch.no_grad()
def init_slots(
    level: MemoryLevel, slots: Iterable[int] | None = None, generator: torch.Generator | None = None
) -> None:
    """Initialise slots (all, if not given): random A, near-zero router (gate about 1/2) and B = 0,
    so that an unlocked slot starts as the identity.
    """
    d_model = level.router.shape[1]
    for s in range(level.slots) if slots is None else slots:
        for part, std in ((level.router, 0.02), (level.w_in, d_model**-0.5)):
            part[s] = torch.randn(part[s].shape, generator=generator).to(part) * std
        level.w_out[s].zero_()


class MemoryMixin:
    """A mixin for a family's MLP class (see `swap_class`) that applies the levels before the
    pretrained MLP (equation 1).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the MLP's output [..., D] for x [..., D]."""
        for level in self.memory:
            x = level(x)
        return super().forward(x)


_SWAPPED: dict[tuple[type, type], type] = {}


def swap_class(module: nn.Module, mixin: type) -> None:
    """Replace the module's class by a subclass with `mixin` first. Unlike wrapping, this keeps the
    names of all parameters.
    """
    cls = type(module)
    if (mixin, cls) not in _SWAPPED:
        _SWAPPED[mixin, cls] = type("Sleep" + cls.__name__, (mixin, cls), {"__module__": __name__})
    module.__class__ = _SWAPPED[mixin, cls]


def attach_memory(
    mlp: nn.Module, d_model: int, levels: list[dict], *, fixed_shape: bool = False
) -> None:
    """Add memory levels to a pretrained MLP; `levels`: experts, d_low and top_k of each, fastest
    first; `fixed_shape`: see MemoryLevel.
    """
    swap_class(mlp, MemoryMixin)
    mlp.memory = nn.ModuleList(
        MemoryLevel(d_model, v["experts"], v["d_low"], v["top_k"], fixed_shape) for v in levels
    )


def first_layer(levels: Sequence[Mapping[str, int]]) -> int:
    """Return the number of the lowest layer with memory; `levels`: see `attach_memory`."""
    return levels[0].get("first_layer", 0) if levels else 0


def memory_levels(model: nn.Module) -> dict[str, MemoryLevel]:
    """Return name -> level over all layers with memory, in layer order."""
    return {name: m for name, m in model.named_modules() if isinstance(m, MemoryLevel)}


def level_number(name: str) -> int:
    """Return the 1-based memory level l of a level's name `...mlp.memory.<l-1>`."""
    return int(name.rsplit(".", 1)[1]) + 1


@contextmanager
def view_of(model: nn.Module, view: str) -> Iterator[None]:
    """Compute with state `view` (TEACHER, STUDENT or CHECKPOINT) inside the block."""
    levels = list(memory_levels(model).values())
    before = [level.view for level in levels]
    for level in levels:
        level.set_view(view)
    try:
        yield
    finally:
        for level, previous in zip(levels, before, strict=True):
            level.set_view(previous)


def patch(
    model: nn.Module, rows: dict[str, dict[int, Expert]], emptied: Collection[str] = ()
) -> None:
    """Form the student (paper.md section 3 a).

    rows: level name -> slot -> expert; these slots hold the expert's weights and are FRESH.
    emptied: names of levels whose consolidation experts are LOCKED (the sender's, already reset).
    """
    levels = memory_levels(model)
    for name in {**rows, **dict.fromkeys(emptied)}:
        state = levels[name].state.clone()
        if name in emptied:
            state[1:] = LOCKED
        state[list(rows.get(name, ()))] = FRESH
        levels[name].set_patch(Patch(state, rows.get(name, {})))


@torch.no_grad()
def commit(model: nn.Module) -> None:
    """Make the student the stored state (paper.md section 3 c); FRESH consolidation experts become
    ACTIVE.
    """
    for level in memory_levels(model).values():
        if level.patch is None:
            continue
        for slot, expert in level.patch.rows.items():
            for part in PARTS:
                getattr(level, part)[slot] = getattr(expert, part)
        state = level.patch.state_S.clone()
        experts = state[BASE_SLOT + 1 :]
        experts[experts == FRESH] = ACTIVE
        level.set_state(state)
    discard(model)


def discard(model: nn.Module) -> None:
    """Drop the student; the stored state is unchanged."""
    for level in memory_levels(model).values():
        level.set_patch(None)
        level.set_view(TEACHER)


def tensors_of(model: nn.Module, view: str = TEACHER) -> dict[str, Tensor]:
    """Return every memory tensor of state `view` by key: `<level>.<part>#<slot>` and
    `<level>.state`.
    """
    out: dict[str, Tensor] = {}
    with view_of(model, view), torch.no_grad():
        for name, level in memory_levels(model).items():
            patched = level.patch.rows if view == STUDENT and level.patch else {}
            for part in PARTS:
                for slot in range(level.slots):
                    source = patched.get(slot, level)
                    tensor = getattr(source, part).detach()
                    out[f"{name}.{part}#{slot}"] = tensor if slot in patched else tensor[slot]
            out[f"{name}.state"] = level.states()
    return out


@torch.no_grad()
def write_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into the stored memory in place, so that captured CUDA graphs stay valid; keys
    are those of `tensors_of`.
    """
    levels = memory_levels(model)
    stored = tensors_of(model)
    for key, tensor in tensors.items():
        if key.endswith(".state"):
            levels[key.removesuffix(".state")].set_state(tensor)
        else:
            stored[key].copy_(tensor)
