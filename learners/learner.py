"""A learner: changes weights. One rank of a DeepSpeed group; it holds the frozen base once, and teacher and student
as two memory states of it (paper.md section 3)."""

from __future__ import annotations

import math
import os
import time

import torch
from safetensors import SafetensorError

from learners.engine import Engine, deepspeed_config, join_group, reduce_sum
from learners.seeding import Rows, Seeding, collate, shares
from sleep_rl import modeling
from sleep_rl.config import Config
from sleep_rl.contracts import STUDENT, TEACHER, InputError, Metrics, RunError, Sequence, Weights
from sleep_rl.digest import digest
from sleep_rl.memory import (BASE_SLOT, FRESH, ACTIVE, LOCKED, PARTS, Expert, MemoryLevel, Patch, commit, discard,
                             init_slots, level_number, memory_levels, tensors_of, view_of)
from sleep_rl.objectives import token_logprobs


class LearnerWorker:
    """`sleep_rl.contracts.Learner` on DeepSpeed. Every rank is constructed and called with the same arguments; which
    rank it is stands in the environment (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)."""

    def __init__(self, checkpoint: str, config: Config, probe_T: tuple[int, ...] = (), base: str = ""):
        self.config, self.rank, self.world = config, int(os.environ["RANK"]), config.learners.world_size
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(config.learners.threads)
        join_group(self.device)
        self.base = base or checkpoint  # what a saved memory points to
        self.model = modeling.load(checkpoint, dtype=getattr(torch, config.model.dtype))
        self.tokenizer = modeling.load_tokenizer(checkpoint, self.model.config.vocab_size)
        self.pad = self.tokenizer.pad_token_id or 0
        if config.learners.zero_stage == 3:  # it partitions parameters; the memory is small and read slot by slot
            for level in memory_levels(self.model).values():
                for part in PARTS:
                    stored = getattr(level, part).data
                    delattr(level, part)
                    level.register_buffer(part, stored)
        self.module = Seeding(self.model, config.sleep)
        plastic = list(self.module.plastic.parameters())
        options = deepspeed_config(config.learners, config.sleep, config.model.dtype == "bfloat16",
                                   max(p.numel() for p in plastic))
        self.engine = Engine(self.module, plastic, options)
        self.levels = memory_levels(self.model)
        self.probe_T = probe_T
        self.pending: dict[str, Expert] | None = None  # sum of eta_t f(theta; x_t) over the open chunk (equation 2)
        self.slot: int | None = None
        self.kept: dict[str, dict[str, torch.Tensor]] = {}
        self._digests: dict[str, str] = {}  # of the stored tensors, by key

    # ------------------------------------------------------------------------------------------------------- wake

    def wake(self, documents_N: list[tuple[int, ...]]) -> Metrics:
        """Wake steps over a day's documents: level 1's own weights move by equation 2 after every full chunk.

        The last chunk (full or partial) is due at the night and stays pending: `open_night` makes it prospective.
        """
        size, losses = self.config.wake.chunk, []
        chunks = [documents_N[i : i + size] for i in range(0, len(documents_N), size)]
        for chunk in chunks:
            self._apply_pending()
            losses.append(self._accumulate(chunk))
        return {"loss": sum(losses) / max(len(documents_N), 1), "updates": float(len(chunks))}

    def _accumulate(self, chunk_N: list[tuple[int, ...]]) -> float:
        """Gradients of one chunk, summed (not averaged) over its steps; within it the weights do not change."""
        mine = chunk_N[self.rank :: self.world]
        own = {name: Expert(*(getattr(v, p)[BASE_SLOT] for p in PARTS)) for name, v in self._of_level(1).items()}
        total = torch.zeros((), device=self.device)
        self._patch({name: {BASE_SLOT: expert} for name, expert in own.items()})
        try:
            for document in mine:
                rows = Rows.of([document[:1]], [document[1:]], self.pad, self.device)
                token_P = torch.tensor(document[1:], device=self.device)
                hidden_PD = self.module.hidden(rows, STUDENT)
                logp_P = token_logprobs(self.model.lm_head, hidden_PD, token_P, self.config.sleep.logit_chunk)
                (-logp_P.mean()).backward()
                total += -logp_P.detach().mean()
        finally:
            discard(self.model)
        self.pending = {} if self.config.wake.lr > 0 else None
        for name, expert in own.items() if self.pending is not None else ():
            for parameter in expert.parameters():
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                if self.world > 1:
                    torch.distributed.all_reduce(grad)
                parameter.data = self.config.wake.lr * grad
            self.pending[name] = expert
        loss = reduce_sum({"loss": total})["loss"]
        if not math.isfinite(loss):
            raise RunError(f"wake: the loss is {loss}; lower wake.lr")
        return loss

    def _apply_pending(self) -> None:
        """theta(i+1) = theta(i) - sum of the chunk (equation 2)."""
        if self.pending is None:
            return
        self._patch({name: {BASE_SLOT: own} for name, own in self._prospective().items()})
        commit(self.model)
        self.pending = None
        self._digests.clear()

    def _prospective(self) -> dict[str, Expert]:
        """theta_new of level 1's own weights, not applied (paper.md section 3 a)."""
        out = {}
        for name, change in (self.pending or {}).items():
            level = self.levels[name]
            out[name] = Expert(*(getattr(level, p)[BASE_SLOT] - getattr(change, p).detach() for p in PARTS))
            out[name].requires_grad_(False)
        return out

    # ------------------------------------------------------------------------------------------------------ night

    def open_night(self, level: int) -> int:
        """Forms the student: prospective own weights, and the next LOCKED expert of `level` unlocked (FRESH).

        Raises InputError when every expert is in use. Returns the expert's slot.
        """
        receivers = self._of_level(level)
        self.slot = self._next_slot(next(iter(receivers.values())), level)
        prospective = self._prospective()
        values = []
        rows: dict[str, dict[int, Expert]] = {name: {BASE_SLOT: own} for name, own in prospective.items()}
        for plastic, (name, receiver) in zip(self.module.plastic, receivers.items(), strict=True):
            values += [getattr(receiver, part)[self.slot] for part in PARTS]
            rows.setdefault(name, {})[self.slot] = plastic
        self.engine.reset(values)
        self._patch(rows)
        return self.slot

    def _next_slot(self, level: MemoryLevel, number: int) -> int:
        states = level.state.tolist()
        used = [s for s in range(1, level.slots) if states[s] != LOCKED]
        if not self.config.sleep.expansion and used:
            return used[-1]
        free = [s for s in range(1, level.slots) if states[s] == LOCKED]
        if not free:
            raise InputError(f"level {number}: all {level.slots - 1} experts are in use; allowed nights are at most "
                             "model.experts")
        return free[0]

    def _patch(self, rows: dict[str, dict[int, Expert]]) -> None:
        """Sets the student of each level: a patched slot is FRESH there."""
        for name, experts in rows.items():
            level = self.levels[name]
            state = level.state.clone()
            state[list(experts)] = FRESH
            level.patch = Patch(state, experts)
            level.refresh()

    def seed_step(self, batch_N: list[Sequence], step: int, steps: int) -> Metrics:
        """One optimizer step on L_KS over `batch_N` (all ranks' rows; each takes its share)."""
        if step == steps // 2:
            self._settle()
        return self._optimize(batch_N, self._lr(step, steps, self.config.sleep.lr), seeding=True)

    def sft_step(self, batch_N: list[Sequence], step: int, steps: int) -> Metrics:
        """One optimizer step of cross entropy on the completions, with the baselines' learning rate."""
        return self._optimize(batch_N, self._lr(step, steps, self.config.baselines.lr), seeding=False)

    def _settle(self) -> None:
        """From here on the new expert competes for the top-k, so that it is trained as it will be used.

        With top_k at least the number of unlocked experts this is the same function.
        """
        for level in self.levels.values():
            if level.patch is not None and self.slot in level.patch.rows:
                level.patch.state_S[self.slot] = ACTIVE
                level.refresh()

    def _lr(self, step: int, steps: int, peak: float) -> float:
        """Linear warm-up, then linear decay; `step` counts from 0."""
        warmup = min(self.config.sleep.warmup, steps // 2)
        if step < warmup:
            return peak * (step + 1) / (warmup + 1)
        return peak * (steps - step) / max(steps - warmup, 1)

    def _optimize(self, batch_N: list[Sequence], lr: float, seeding: bool) -> Metrics:
        began, tokens = time.perf_counter(), sum(len(r.completion_T) for r in batch_N)
        weight = self.config.sleep.prompt_weight if seeding else 1.0
        positions = sum(sum(shares(r, weight)) for r in batch_N)
        rewarded = sum(len(r.completion_T) for r in batch_N if r.advantage is not None)
        counts = [torch.tensor(float(n), device=self.device) for n in (positions, rewarded)]
        sums: dict[str, torch.Tensor] = {}
        micros = self._micro_batches(batch_N)
        for i, (rows, weights) in enumerate(micros):
            batch = collate(rows, weights, self.pad, self.device, teacher=seeding, prompt_weight=weight)
            loss, parts = self.engine(batch, *counts, seeding)
            # DeepSpeed averages gradients over ranks; the counts are already global.
            self.engine.backward(loss * self.world, last=i == len(micros) - 1)
            for name, value in {**parts, "loss": loss.detach()}.items():
                old = sums.get(name, torch.zeros_like(value))
                sums[name] = torch.maximum(old, value) if name == "ratio_max" else old + value
        totals = reduce_sum(sums, maxima=("ratio_max",))
        if not math.isfinite(totals["loss"]):
            raise RunError(f"learner: the loss is {totals['loss']} (lr {lr:.2g}); nothing of this night was applied")
        totals.update(grad_norm=self.engine.step(lr), lr=lr, tokens_trained=float(tokens),
                      sequences=float(len(batch_N)), seconds=time.perf_counter() - began)
        return _averages(totals, rewarded)

    def _micro_batches(self, batch_N: list[Sequence]) -> list[tuple[list[Sequence], list[float]]]:
        """This rank's rows in micro batches, short ones first: rows of like length are padded little. Every rank gets
        equally many: collectives run in each backward pass."""
        size = self.config.learners.micro_batch
        share = math.ceil(len(batch_N) / self.world)
        mine = sorted(batch_N[self.rank :: self.world], key=_read)
        weights = [1.0] * len(mine)
        while len(mine) < share:  # filler that counts nothing
            mine, weights = mine + batch_N[:1], weights + [0.0]
        return [(mine[i : i + size], weights[i : i + size]) for i in range(0, share, size)]

    def close_night(self, commit_night: bool) -> None:
        """Update: the student becomes the stored state; or everything stays as it was before the night."""
        if commit_night:
            with self.engine.whole():
                commit(self.model)
        else:
            discard(self.model)
        self.pending, self.slot = None, None
        self._digests.clear()

    # ------------------------------------------------------------------------------------------------- in and out

    @torch.no_grad()
    def export(self, name: str, version: int, have: dict[str, str], view: str = STUDENT) -> Weights:
        """The state of `view` under `name`: its complete manifest, the whole modules (expert of a level) in which
        anything differs from `have`, and a probe."""
        with self.engine.whole():
            tensors = tensors_of(self.model, view)
            manifest = {key: self._digest(key, tensor, view) for key, tensor in tensors.items()}
            changed = {_module(key) for key, known in manifest.items() if have.get(key) != known}
            wanted = changed if self.rank == 0 else set()  # one rank's answer is used; the others spare the copies
            delta = {key: tensor.cpu().clone() for key, tensor in tensors.items() if _module(key) in wanted}
        return Weights(name, version, manifest, delta, self.probe_T, self._probe(view))

    def _digest(self, key: str, tensor: torch.Tensor, view: str) -> str:
        """Digests of stored tensors are kept until they change; those of an open night are computed anew."""
        level = self.levels[key.rsplit(".", 1)[0]]
        part, _, slot = key.rsplit(".", 1)[1].partition("#")
        if view == STUDENT and level.patch and (part == "state" or int(slot) in level.patch.rows):
            return digest(tensor)
        if key not in self._digests:
            self._digests[key] = digest(tensor)
        return self._digests[key]

    def _probe(self, view: str) -> tuple[float, ...]:
        if len(self.probe_T) < 2:
            return ()
        rows = Rows.of([self.probe_T[:1]], [self.probe_T[1:]], self.pad, self.device)
        token_P = torch.tensor(self.probe_T[1:], device=self.device)
        hidden_PD = self.module.hidden(rows, view)
        return tuple(token_logprobs(self.model.lm_head, hidden_PD, token_P, self.config.sleep.logit_chunk).tolist())

    def keep(self, tag: str) -> None:
        """Remembers the stored memory under `tag`: the lives of sleep and of the baselines share one learner."""
        self.kept[tag] = {k: v.detach().clone() for k, v in self.model.state_dict().items() if ".memory." in k}

    def use(self, tag: str) -> None:
        """Puts the memory kept under `tag` back; an open night or chunk is dropped."""
        discard(self.model)
        self.model.load_state_dict(self.kept[tag], strict=False)
        self.pending, self.slot = None, None
        self._digests.clear()
        for level in self.levels.values():
            level.refresh()

    def save(self, path: str) -> None:
        """Writes the stored memory beside a pointer to the base (rank 0 only). Raises RunError when it cannot, with
        what was there before intact."""
        if self.rank > 0:
            return
        try:
            modeling.save_memory(self.model, path, self.base)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{path}: the memory cannot be written ({modeling.first_line(error)}); "
                           "what was saved before is intact") from error

    def close(self) -> None:
        """Leaves the process group."""
        if self.world > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _of_level(self, number: int) -> dict[str, MemoryLevel]:
        return {name: level for name, level in self.levels.items() if level_number(name) == number}


def _read(row: Sequence) -> int:
    """Tokens that student and teacher read of a row."""
    return len(row.prompt_T) + len(row.teacher_T or row.prompt_T) + 2 * len(row.completion_T)


def _module(key: str) -> str:
    """`<level>#<slot>` of a tensor's key, or the key itself for a level's state."""
    name, _, slot = key.partition("#")
    return f"{name.rsplit('.', 1)[0]}#{slot}" if slot else key


def _averages(totals: dict[str, float], rewarded: int) -> Metrics:
    """Means from the sums over all ranks, under the journal's names."""
    out = {k: totals[k] for k in ("loss", "grad_norm", "lr", "tokens_trained", "sequences", "seconds")}
    pairs = {"divergence": ("divergence_sum", "divergence_count"), "divergence_replay": ("replay_sum", "replay_count"),
             "logprob_gap": ("gap_sum", "stale_count"), "is_ratio_mean": ("ratio_sum", "stale_count")}
    for name, (top, bottom) in pairs.items():
        if totals.get(bottom, 0.0) > 0:
            out[name] = totals[top] / totals[bottom]
    if rewarded and "policy_sum" in totals:
        out["policy_loss"] = totals["policy_sum"] / rewarded
    if totals.get("stale_count", 0.0) > 0:
        out["is_ratio_max"] = totals["ratio_max"]
    return out
