"""A learner: changes weights. One rank of a DeepSpeed group; it holds the frozen base once, and
teacher and student as two memory states of it (paper.md section 3).
"""

from __future__ import annotations

import math
import os
import random
import time

import torch

from learners import checkpoint_io
from learners.engine import Engine, deepspeed_config, join_group, reduce_sum
from learners.expert_slots import SlotAllocator
from learners.gradient_gram import gram
from learners.hidden_state_cache import HiddenStateCache
from learners.seeding import Rows, Seeding, averages, collate, over_tokens
from learners.wake import Chunks
from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import RunError, one_line
from sleep_rl.contracts.records import STUDENT, Metrics, StepResult, TrainingRow, Weights
from sleep_rl.contracts.roles import SlotChoice
from sleep_rl.model import checkpoints, memory_folder
from sleep_rl.model.memory import (
    ACTIVE,
    BASE_SLOT,
    FRESH,
    LOCKED,
    PARTS,
    Expert,
    MemoryLevel,
    commit,
    discard,
    init_slots,
    level_number,
    memory_levels,
    patch,
    tensors_of,
)
from sleep_rl.model.tensor_digest import digest
from sleep_rl.objectives import token_logprobs

_NOW = "now"  # tag of the stored memory while it is written or read


class LearnerWorker:
    """`sleep_rl.contracts.roles.Learner` on DeepSpeed. Every rank is constructed and called with the same
    arguments; which rank it is stands in the environment (RANK, WORLD_SIZE, MASTER_ADDR,
    MASTER_PORT).
    """

    def __init__(
        self, checkpoint: str, config: Config, probe_T: tuple[int, ...] = (), base: str = ""
    ):
        self.config, self.rank, self.world = (
            config,
            int(os.environ["RANK"]),
            config.learners.world_size,
        )
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(config.learners.threads)
        join_group(self.device)
        self.base = base or checkpoint  # what a saved memory points to
        self.model = checkpoints.load(checkpoint, dtype=getattr(torch, config.model.dtype))
        self.tokenizer = checkpoints.load_tokenizer(checkpoint, self.model.config.vocab_size)
        self.pad = self.tokenizer.pad_token_id or 0
        # it partitions parameters; the memory is small and read slot by slot
        if config.learners.zero_stage == 3:
            for level in memory_levels(self.model).values():
                for part in PARTS:
                    stored = getattr(level, part).data
                    delattr(level, part)
                    level.register_buffer(part, stored)
        # ZeRO-3 gathers the base in each pass, so there every rank must make the same passes:
        # nothing is remembered.
        recall = (
            HiddenStateCache(config.learners.recall_mib << 20)
            if config.learners.zero_stage < 3
            else None
        )
        self.module = Seeding(self.model, config, self.pad, recall)
        plastic = list(self.module.plastic.parameters())
        options = deepspeed_config(
            config.learners,
            config.sleep,
            config.model.dtype == "bfloat16",
            max(p.numel() for p in plastic),
        )
        self.engine = Engine(self.module, plastic, options)
        self.levels = memory_levels(self.model)
        self.probe_T = probe_T
        self.chunks = Chunks(
            self.module,
            lr=config.wake.lr,
            logit_chunk=config.learners.logit_chunk,
            rank=self.rank,
            world=self.world,
        )
        self.order = SlotAllocator()
        # of experts that are used again
        self.generator = torch.Generator().manual_seed(config.run.seed)
        self.slot: int | None = None
        self.due: tuple[int, ...] = ()
        # level name -> slots that are reset when the night is committed
        self.emptied: dict[str, list[int]] = {}
        self.kept: dict[str, tuple] = {}
        self._digests: dict[str, str] = {}  # of the stored tensors, by key

    # ---- wake

    def wake(self, documents_N: list[tuple[int, ...]]) -> Metrics:
        """One wake step per document: its gradients join the open chunk of every level (equation
        2).
        """
        return {
            "loss": self.chunks.add(documents_N, self.pad, self.device),
            "updates": float(len(documents_N)),
        }

    # ---- night

    def open_night(
        self, receiver: int, due: tuple[int, ...] = (), slot: SlotChoice = "next"
    ) -> int:
        """Form teacher and student of the consolidation into level `receiver`."""
        receivers = self._of_level(receiver)
        states = next(iter(receivers.values())).state.tolist()
        place = self.order.assign(receiver, states, self.config.sleep, slot)
        self.slot, self.due = place.slot, due
        senders = self._of_level(receiver - 1) if self.config.sleep.reset else {}
        rows: dict[str, dict[int, Expert]] = {
            name: {BASE_SLOT: own} for name, own in self.chunks.prospective(due).items()
        }
        values = []
        for plastic, (name, level) in zip(self.module.plastic, receivers.items(), strict=True):
            values += place.first_values(level, self.generator)
            rows.setdefault(name, {})[self.slot] = plastic
        self.engine.reset(values)
        self.module.forget()
        patch(self.model, rows, emptied=senders)
        for name in receivers if place.absorbed else ():
            self.levels[name].set_slot_state(place.absorbed, LOCKED, view=STUDENT)
        self.emptied = {name: list(range(1, level.slots)) for name, level in senders.items()}
        self.emptied |= {name: [place.absorbed] for name in receivers if place.absorbed}
        return self.slot

    def load_teachers(self, paths: list[str]) -> None:
        """See contracts.roles.TeacherHost. Raises InputError for a checkpoint that cannot be
        loaded.
        """
        dtype = getattr(torch, self.config.model.dtype)
        self.module.others = tuple(
            checkpoints.load(path, dtype=dtype).to(self.device) for path in paths
        )

    def unload_teachers(self) -> None:
        """Drop the models of `load_teachers`."""
        self.module.others = ()

    def seed_step(self, batch_N: list[TrainingRow], step: int, steps: int) -> StepResult:
        """One optimizer step on L_KS over `batch_N` (all ranks' rows; each takes its share)."""
        self._settle(step, steps)
        return self._optimize(batch_N, self._lr(step, steps, self.config.sleep.lr), seeding=True)

    def sft_step(
        self, batch_N: list[TrainingRow], step: int, steps: int, peak: float | None = None
    ) -> Metrics:
        """One optimizer step of cross entropy on the completions, with `peak` or the baselines'
        learning rate.
        """
        self._settle(step, steps)
        peak = self.config.baselines.lr if peak is None else peak
        return self._optimize(batch_N, self._lr(step, steps, peak), seeding=False).metrics

    def _settle(self, step: int, steps: int) -> None:
        """From half of the steps on the new expert competes for the top-k, so that it is trained as
        it will be used.

        With top_k at least the number of unlocked experts this is the same function.
        """
        if step != steps // 2:
            return
        for level in self.levels.values():
            if level.patch is not None and self.slot in level.patch.rows:
                level.set_slot_state(self.slot, ACTIVE, view=STUDENT)

    def _lr(self, step: int, steps: int, peak: float) -> float:
        """Linear warm-up, then linear decay; `step` counts from 0."""
        warmup = min(self.config.sleep.warmup, steps // 2)
        if step < warmup:
            return peak * (step + 1) / (warmup + 1)
        return peak * (steps - step) / max(steps - warmup, 1)

    def _optimize(self, batch_N: list[TrainingRow], lr: float, seeding: bool) -> StepResult:
        began, tokens = time.perf_counter(), sum(len(r.completion_T) for r in batch_N)
        weight = self.config.objective.prompt_weight if seeding else 1.0
        positions = sum(sum(over_tokens(r, weight, 1.0)) for r in batch_N)
        rewarded = sum(len(r.completion_T) for r in batch_N if r.advantage is not None)
        counts = [torch.tensor(float(n), device=self.device) for n in (positions, rewarded)]
        sums: dict[str, torch.Tensor] = {}
        rows_N = torch.zeros(len(batch_N), device=self.device)
        micros = self._micro_batches(batch_N)
        for i, (rows, weights, numbers) in enumerate(micros):
            batch = collate(
                rows, weights, self.pad, self.device, teacher=seeding, prompt_weight=weight
            )
            loss, parts = self.engine(batch, *counts, seeding)
            # DeepSpeed averages gradients over ranks; the counts are already global.
            self.engine.backward(loss * self.world, last=i == len(micros) - 1)
            if seeding:
                rows_N[numbers] = parts.pop("rows")[: len(numbers)]
            for name, value in {**parts, "loss": loss.detach()}.items():
                old = sums.get(name, torch.zeros_like(value))
                sums[name] = torch.maximum(old, value) if name == "ratio_max" else old + value
        totals = reduce_sum(sums, maxima=("ratio_max",))
        if self.world > 1:
            torch.distributed.all_reduce(rows_N)
        if not math.isfinite(totals["loss"]):
            raise RunError(
                f"learner: the loss is {totals['loss']} at learning rate {lr:.2g}, "
                "lower it (sleep.lr, baselines.lr, "
                "dream.policy.lr); nothing of this night was applied"
            )
        totals.update(
            grad_norm=self.engine.step(lr),
            lr=lr,
            tokens_trained=float(tokens),
            sequences=float(len(batch_N)),
            seconds=time.perf_counter() - began,
        )
        return StepResult(averages(totals, rewarded), rows_N.tolist())

    def _micro_batches(
        self, batch_N: list[TrainingRow]
    ) -> list[tuple[list[TrainingRow], list[float], list[int]]]:
        """This rank's rows in micro batches (rows, weights, places in the batch), short ones first:
        rows of like length are padded little. Every rank gets equally many: collectives run in each
        backward pass.
        """
        size = self.config.learners.micro_batch
        share = math.ceil(len(batch_N) / self.world)
        places = sorted(
            range(self.rank, len(batch_N), self.world),
            # what the student reads
            key=lambda n: len(batch_N[n].prompt_T) + len(batch_N[n].completion_T),
        )
        fill = share - len(places)  # filler counts nothing
        rows, weights = (
            [batch_N[n] for n in places] + batch_N[:1] * fill,
            [1.0] * len(places) + [0.0] * fill,
        )
        return [
            (rows[i : i + size], weights[i : i + size], places[i : i + size])
            for i in range(0, share, size)
        ]

    # ---- dreams

    def rebase_policy_expert(self, tag: str) -> None:
        """See contracts.Learner."""
        memory, _, order = self.kept[tag]
        slot = order[1][-1]
        self.open_night(1, slot="next_or_newest")
        self.engine.reset(
            [memory[f"{name}.{part}"][slot] for name in self._of_level(1) for part in PARTS]
        )
        self.commit_night()
        self.save_state(tag)

    def activate_random_expert(self, seed: int) -> dict[str, int]:
        """See contracts.Learner. The chosen expert is FRESH: always on and outside the top-k, so
        each router lets it through beside those that it chooses.
        """
        chosen = {}
        for name, level in self.levels.items():
            active = [
                s
                for s, state in enumerate(level.state.tolist())
                if state == ACTIVE and s != BASE_SLOT
            ]
            if active:
                chosen[name] = random.Random(f"{seed}/{name}").choice(active)
        patch(self.model, {name: {} for name in chosen})
        for name, slot in chosen.items():
            self.levels[name].set_slot_state(slot, FRESH, view=STUDENT)
        return chosen

    def gradient_gram(
        self, texts_N: list[tuple[tuple[int, ...], tuple[int, ...]]], whole: bool
    ) -> list[list[float]]:
        """See contracts.Learner."""
        try:
            return gram(
                self.model,
                texts_N,
                self.pad,
                whole=whole,
                size=self.config.learners.micro_batch,
                chunk=self.config.learners.logit_chunk,
            ).tolist()
        except ValueError as error:
            raise RunError(f"learner: {error}") from error

    def commit_night(self) -> None:
        """Update (paper.md section 3 c): the student becomes the stored state."""
        with self.engine.whole():
            commit(self.model)
        for name, slots in self.emptied.items():  # unlocked again, they begin as the identity
            init_slots(self.levels[name], slots, self.generator)
        self.chunks.drop(self.due)
        self.order.commit()
        self._close()

    def discard_night(self) -> None:
        """Drops the student: everything stays as it was before the night (or the dream)."""
        discard(self.model)
        self._close()

    def _close(self) -> None:
        self.slot = None
        self.due = ()
        self.emptied = {}
        self._digests.clear()

    # ---- in and out

    @torch.no_grad()
    def export(self, name: str, version: int, have: dict[str, str], view: str) -> Weights:
        """The state of `view` under `name`: its complete manifest, the whole modules (expert of a
        level) in which anything differs from `have`, and a probe.
        """
        with self.engine.whole():
            tensors = tensors_of(self.model, view)
            manifest = {key: self._digest(key, tensor, view) for key, tensor in tensors.items()}
            changed = {_module(key) for key, known in manifest.items() if have.get(key) != known}
            # one rank's answer is used; the others spare the copies
            wanted = changed if self.rank == 0 else set()
            delta = {
                key: tensor.cpu().clone()
                for key, tensor in tensors.items()
                if _module(key) in wanted
            }
        return Weights(name, version, manifest, delta, self.probe_T, self._probe(view))

    def _digest(self, key: str, tensor: torch.Tensor, view: str) -> str:
        """Digests of stored tensors are kept until they change; those of an open night are computed
        anew.
        """
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
        return tuple(
            token_logprobs(
                self.model.lm_head, hidden_PD, token_P, self.config.learners.logit_chunk
            ).tolist()
        )

    def save_state(self, tag: str, of: str = "") -> None:
        """See contracts.Learner. What is kept is never written to, so two tags may share it."""
        if of:
            self.kept[tag] = self.kept[of]
            return
        memory = {
            k: v.detach().clone() for k, v in self.model.state_dict().items() if ".memory." in k
        }
        self.kept[tag] = memory, self.chunks.state(), self.order.state()

    def load_state(self, tag: str) -> None:
        """Puts the memory kept under `tag` back, with its open chunks; an open night is dropped."""
        discard(self.model)
        memory, chunks, order = self.kept[tag]
        self.model.load_state_dict(memory, strict=False)
        self.chunks.restore(chunks)
        self.order.restore(order)
        self.slot, self.due, self.emptied = None, (), {}
        self._digests.clear()

    def save_progress(self, path: str) -> None:
        """See contracts.Learner (rank 0 writes)."""
        # a row's states depend, in the last bit, on the rows beside it when they were computed
        self.module.forget()
        state = self.engine.state()
        if self.rank == 0:
            checkpoint_io.write_tensors(
                path, state | {checkpoint_io.GENERATOR: self.generator.get_state()}
            )

    def restore_progress(self, path: str, step: int, steps: int) -> None:
        """See contracts.Learner. Raises RunError when it cannot be read or is of another model."""
        self.module.forget()
        tensors = checkpoint_io.read_tensors(path)
        try:
            self.generator.set_state(tensors.pop(checkpoint_io.GENERATOR))
            self.engine.restore(tensors)
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            raise RunError(
                f"{path}: the night's state cannot be read ({one_line(error)})"
            ) from error
        if step > steps // 2:
            self._settle(steps // 2, steps)

    def save_checkpoint(self, path: str) -> None:
        """Writes everything that a new learner needs to go on between two nights (rank 0 only).
        Raises RunError.
        """
        self.save_state(_NOW)
        now = self.kept.pop(_NOW)
        if self.rank == 0:
            checkpoint_io.write(path, {**self.kept, _NOW: now}, self.generator)

    def load_checkpoint(self, path: str) -> None:
        """Takes a snapshot back. Raises RunError when it cannot be read or is of another model."""
        states, generator = checkpoint_io.read(path, self.device)
        mine = {k: v.shape for k, v in self.model.state_dict().items() if ".memory." in k}
        for memory, *_ in states.values():
            if {k: v.shape for k, v in memory.items()} != mine:
                raise RunError(
                    f"{path}: the learner's state cannot be read (it is of another model)"
                )
        try:
            self.kept = states
            self.load_state(_NOW)
            self.generator.set_state(generator)
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            raise RunError(
                f"{path}: the learner's state cannot be read ({one_line(error)})"
            ) from error
        del self.kept[_NOW]

    def save_memory(self, path: str) -> None:
        """Writes the stored memory beside a pointer to the base (rank 0 only). Raises RunError when
        it cannot, with what was there before intact.
        """
        if self.rank == 0:
            memory_folder.save_memory(self.model, path, self.base)

    def close(self) -> None:
        """Leaves the process group."""
        if self.world > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _of_level(self, number: int) -> dict[str, MemoryLevel]:
        return {name: level for name, level in self.levels.items() if level_number(name) == number}


def _module(key: str) -> str:
    """`<level>#<slot>` of a tensor's key, or the key itself for a level's state."""
    name, _, slot = key.partition("#")
    return f"{name.rsplit('.', 1)[0]}#{slot}" if slot else key
