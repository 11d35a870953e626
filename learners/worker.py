"""The learner: one rank of a DeepSpeed group, with one frozen base, and teacher and student as two
memory states of it (paper.md section 3).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from learners import checkpoint_io
from learners.dream_state import form_dreaming_student, newest_expert
from learners.engine import TrainingEngine, deepspeed_config, join_group
from learners.expert_slots import SlotAllocator
from learners.export import StateExporter
from learners.gradient_gram import gram_matrix
from learners.hidden_state_cache import HiddenStateCache, cache_bytes
from learners.lifecycle import LearnerState, allowed_in
from learners.optimization import BatchOptimizer, learning_rate
from learners.seeding import Seeding
from learners.states import MemoryStates
from learners.teacher import Teacher
from learners.wake import Chunks
from sleep_rl.config.schema import LOGIT_CHUNK, Config
from sleep_rl.contracts.errors import RunError, one_line
from sleep_rl.contracts.records import STUDENT, Metrics, StepResult, TrainingRow, Weights
from sleep_rl.contracts.roles import SlotChoice
from sleep_rl.model import checkpoints, memory_folder
from sleep_rl.model.memory import (
    ACTIVE,
    BASE_SLOT,
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
)


class LearnerWorker:
    """Implements roles.Learner with DeepSpeed.

    Every rank is constructed and called with the same arguments; RANK, WORLD_SIZE, MASTER_ADDR and
    MASTER_PORT in the environment identify it. `state` determines which methods are allowed, see
    `lifecycle`.
    """

    def __init__(
        self, checkpoint: str, config: Config, probe_T: tuple[int, ...] = (), base: str = ""
    ):
        """Load the model, join the process group and start DeepSpeed.

        checkpoint: a sleep checkpoint; probe_T: the probe prompt of each export; base: the model
        that a saved memory refers to, if it is not `checkpoint`.
        """
        self.config = config
        self.rank = int(os.environ["RANK"])
        self.world = config.learners.world_size
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.base = base or checkpoint
        self.state = LearnerState.IDLE
        torch.set_num_threads(config.learners.threads)
        join_group(self.device)
        self.model = checkpoints.load(checkpoint, dtype=getattr(torch, config.model.dtype))
        tokenizer = checkpoints.load_tokenizer(checkpoint, self.model.config.vocab_size)
        self.pad = tokenizer.pad_token_id or 0
        if config.learners.zero_stage == 3:
            _keep_memory_whole(self.levels)
        self.module = Seeding(self.model, config, self.pad)
        self.engine = _engine(self.module, config)
        placement = {"device": self.device, "rank": self.rank}
        self.chunks = Chunks(self.module, lr=config.wake.lr, world=self.world, **placement)
        cache = HiddenStateCache(cache_bytes(config.learners.zero_stage))
        budget = config.learners.pass_tokens
        self.teacher = Teacher(self.module, cache, budget=budget, device=self.device)
        self.optimizer = BatchOptimizer(
            self.engine, self.teacher, config, pad=self.pad, world=self.world, **placement
        )
        self.exporter = StateExporter(self.module, self.engine, probe_T, **placement)
        self.slots = SlotAllocator()
        # for the initial weights of experts in reused slots
        self.generator = torch.Generator().manual_seed(config.run.seed)
        self.states = MemoryStates(self.model, self.chunks, self.slots, self.generator, self.device)
        # of the open night: the new expert's slot, the levels whose base experts are updated, and
        # level name -> slots that are reset when it is committed
        self.slot: int | None = None
        self.due: tuple[int, ...] = ()
        self.slots_to_reset: dict[str, list[int]] = {}

    @property
    def levels(self) -> dict[str, MemoryLevel]:
        """Return level name -> level, over all layers."""
        return memory_levels(self.model)

    # ---- Trainer

    @allowed_in(LearnerState.IDLE)
    def wake(self, documents_N: list[tuple[int, ...]]) -> Metrics:
        """Take one wake step per document (equation 2)."""
        return {"loss": self.chunks.add(documents_N), "updates": float(len(documents_N))}

    @allowed_in(LearnerState.IDLE)
    def open_night(
        self, receiver: int, due: tuple[int, ...] = (), slot: SlotChoice = "next"
    ) -> int:
        """Form the student of the consolidation into level `receiver` (paper.md section 3 a).

        In it the base experts of the levels in `due` are updated, the sender's experts (of level
        receiver - 1, if any) are locked, and the receiver has one more expert. Returns its slot.
        """
        receivers = self._of_level(receiver)
        senders = self._of_level(receiver - 1) if self.config.sleep.reset else {}
        states = next(iter(receivers.values())).state.tolist()
        assignment = self.slots.assign(receiver, states, self.config.sleep, slot)
        rows: dict[str, dict[int, Expert]] = {
            name: {BASE_SLOT: expert} for name, expert in self.chunks.prospective(due).items()
        }
        values = []
        for expert, (name, level) in zip(self.module.plastic, receivers.items(), strict=True):
            values += assignment.first_values(level, self.generator)
            rows.setdefault(name, {})[assignment.slot] = expert
        self.engine.reset(values)
        self.teacher.clear_cache()
        patch(self.model, rows, emptied=senders)
        self.slot = assignment.slot
        self.due = due
        self.slots_to_reset = {name: list(range(1, level.slots)) for name, level in senders.items()}
        if assignment.absorbed:
            for name, level in receivers.items():
                level.set_slot_state(assignment.absorbed, LOCKED, view=STUDENT)
                self.slots_to_reset[name] = [assignment.absorbed]
        self.state = LearnerState.NIGHT_OPEN
        return assignment.slot

    @allowed_in(LearnerState.NIGHT_OPEN)
    def seed_step(self, batch_N: list[TrainingRow], step: int, steps: int) -> StepResult:
        """Take one optimizer step on L_KS over `batch_N` (equations 3 to 6)."""
        self._activate_at_half(step, steps)
        lr = learning_rate(step, steps, self.config.sleep.lr, self.config.sleep.warmup)
        return self.optimizer.step(batch_N, lr, seeding=True)

    @allowed_in(LearnerState.NIGHT_OPEN)
    def sft_step(
        self, batch_N: list[TrainingRow], step: int, steps: int, peak: float | None = None
    ) -> Metrics:
        """Take one optimizer step of cross entropy on the completions."""
        self._activate_at_half(step, steps)
        peak = self.config.baselines.lr if peak is None else peak
        lr = learning_rate(step, steps, peak, self.config.sleep.warmup)
        return self.optimizer.step(batch_N, lr, seeding=False).metrics

    @allowed_in(LearnerState.NIGHT_OPEN)
    def commit_night(self) -> None:
        """Make the student the stored memory (paper.md section 3 c)."""
        with self.engine.whole():
            commit(self.model)
        # experts in these slots start as the identity
        for name, slots in self.slots_to_reset.items():
            init_slots(self.levels[name], slots, self.generator)
        self.chunks.clear(self.due)
        self.slots.commit()
        self._become_idle()

    @allowed_in(LearnerState.NIGHT_OPEN, LearnerState.DREAMING)
    def discard_night(self) -> None:
        """Drop the student; the stored memory is unchanged."""
        discard(self.model)
        self._become_idle()

    def _become_idle(self) -> None:
        self.slot = None
        self.due = ()
        self.slots_to_reset = {}
        self.exporter.clear_digests()
        self.state = LearnerState.IDLE

    def _activate_at_half(self, step: int, steps: int) -> None:
        """Make the new expert ACTIVE at half of the steps, so that it competes for the top-k as it
        will after the night. Without effect if top_k is at least the number of unlocked experts.
        """
        if step != steps // 2:
            return
        for level in self.levels.values():
            if level.patch is not None and self.slot in level.patch.rows:
                level.set_slot_state(self.slot, ACTIVE, view=STUDENT)

    def _of_level(self, number: int) -> dict[str, MemoryLevel]:
        return {name: level for name, level in self.levels.items() if level_number(name) == number}

    # ---- DreamSupport

    @allowed_in(LearnerState.IDLE)
    def activate_random_expert(self, seed: int) -> dict[str, int]:
        """Form the dreaming student; see `form_dreaming_student`."""
        chosen = form_dreaming_student(self.model, seed)
        self.state = LearnerState.DREAMING
        return chosen

    @allowed_in(LearnerState.IDLE)
    def gradient_gram(
        self, texts_N: list[tuple[tuple[int, ...], tuple[int, ...]]], whole: bool
    ) -> list[list[float]]:
        """Return the inner products [N, N] of the texts' gradients; see `gram_matrix`."""
        try:
            return gram_matrix(
                self.model,
                texts_N,
                self.pad,
                whole=whole,
                budget=self.config.learners.pass_tokens,
                chunk=LOGIT_CHUNK,
            ).tolist()
        except ValueError as error:
            raise RunError(f"learner: {error}") from error

    @allowed_in(LearnerState.IDLE)
    def rebase_policy_expert(self, tag: str) -> None:
        """Rebase the state saved under `tag` onto the current memory."""
        expert = newest_expert(self.states[tag], self.model)
        self.open_night(1, slot="next_or_newest")
        self.engine.reset(expert)
        self.commit_night()
        self.save_state(tag)

    # ---- TeacherHost

    @allowed_in(LearnerState.IDLE)
    def load_teachers(self, paths: list[str]) -> None:
        """Load the checkpoints of model.teachers. Raises InputError if one cannot be loaded."""
        dtype = getattr(torch, self.config.model.dtype)
        self.module.set_teachers(
            checkpoints.load(path, dtype=dtype).to(self.device) for path in paths
        )

    @allowed_in(LearnerState.IDLE)
    def unload_teachers(self) -> None:
        """Delete the models of `load_teachers`."""
        self.module.set_teachers(())

    # ---- StateStore

    @allowed_in(LearnerState.IDLE)
    def save_state(self, tag: str, of: str = "") -> None:
        """Save the memory, its open chunks and the order of its experts under `tag`, or make `tag`
        another name of state `of`.
        """
        self.states.save(tag, of)

    @allowed_in(LearnerState.IDLE)
    def load_state(self, tag: str) -> None:
        """Replace the memory by the state saved under `tag`."""
        self.states.load(tag)
        self.exporter.clear_digests()

    # ---- Checkpointing: rank 0 writes, every rank reads

    @allowed_in(LearnerState.NIGHT_OPEN)
    def save_progress(self, path: str) -> None:
        """Write expert and optimizer state of the open night, and clear the caches."""
        self._clear_caches()
        tensors = self.engine.state()
        if self.rank == 0:
            tensors[checkpoint_io.GENERATOR] = self.generator.get_state()
            checkpoint_io.write_tensors(path, tensors)

    @allowed_in(LearnerState.NIGHT_OPEN)
    def restore_progress(self, path: str, step: int, steps: int) -> None:
        """Restore what `save_progress` wrote after `step` of `steps` steps. Raises RunError when it
        cannot be read or is of another model.
        """
        self._clear_caches()
        tensors = checkpoint_io.read_tensors(path)
        try:
            self.generator.set_state(tensors.pop(checkpoint_io.GENERATOR))
            self.engine.restore(tensors)
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            raise RunError(
                f"{path}: the night's state cannot be read ({one_line(error)})"
            ) from error
        if step > steps // 2:
            self._activate_at_half(steps // 2, steps)

    @allowed_in(LearnerState.IDLE)
    def save_checkpoint(self, path: str) -> None:
        """Write the states, chunks and generator from which a new learner can continue, and clear
        the caches.
        """
        self._clear_caches()
        if self.rank == 0:
            self.states.write_checkpoint(path)

    @allowed_in(LearnerState.IDLE)
    def load_checkpoint(self, path: str) -> None:
        """Restore what `save_checkpoint` wrote."""
        self._clear_caches()
        self.states.read_checkpoint(path)
        self.exporter.clear_digests()

    def _clear_caches(self) -> None:
        # a resumed learner has empty caches too: hidden states depend, in the last bit, on the
        # other rows of their pass
        self.teacher.clear_cache()
        self.module.trunk.cache.clear()

    @allowed_in(LearnerState.IDLE)
    def save_memory(self, path: str) -> None:
        """Write the stored memory as a memory folder, atomically."""
        if self.rank == 0:
            memory_folder.save_memory(self.model, path, self.base)

    # ---- Exporter

    def export(self, name: str, version: int, have: dict[str, str], view: str) -> Weights:
        """Return a state of the memory as a delta; see `StateExporter.export`."""
        return self.exporter.export(name, version, have, view)

    def close(self) -> None:
        """Destroy the process group."""
        if self.world > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _keep_memory_whole(levels: Mapping[str, MemoryLevel]) -> None:
    """Turn the memory's parameters into buffers, which ZeRO-3 does not partition: the memory is
    small and read slot by slot.
    """
    for level in levels.values():
        for part in PARTS:
            stored = getattr(level, part).data
            delattr(level, part)
            level.register_buffer(part, stored)


def _engine(module: Seeding, config: Config) -> TrainingEngine:
    plastic = list(module.plastic.parameters())
    options = deepspeed_config(
        config.learners,
        config.sleep,
        bf16=config.model.dtype == "bfloat16",
        largest=max(parameter.numel() for parameter in plastic),
    )
    return TrainingEngine(module, plastic, options)
