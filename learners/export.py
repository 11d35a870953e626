"""Exports of a memory state: manifest, delta, and probe."""

from __future__ import annotations

import torch
from torch import Tensor

from learners.engine import TrainingEngine
from learners.seeding import Seeding
from sleep_rl.config.schema import LOGIT_CHUNK
from sleep_rl.contracts.records import STUDENT, Weights
from sleep_rl.model.memory import memory_levels, tensors_of
from sleep_rl.model.packing import PaddedRows
from sleep_rl.model.tensor_digest import digest
from sleep_rl.objectives import token_logprobs


class StateExporter:
    """Exports teacher and student states of the memory as `Weights`."""

    def __init__(
        self,
        module: Seeding,
        engine: TrainingEngine,
        probe_T: tuple[int, ...],
        *,
        device: str,
        rank: int,
    ):
        """Create an exporter that has sent nothing. `probe_T`: the probe prompt of each export;
        shorter than 2 tokens: no probe.
        """
        self.module = module
        self.model = module.model
        self.levels = memory_levels(module.model)
        self.engine = engine
        self.probe_T = probe_T
        self.device = device
        self.rank = rank
        self._stored_digests: dict[str, str] = {}  # by key

    @torch.no_grad()
    def export(self, name: str, version: int, have: dict[str, str], view: str) -> Weights:
        """Return the state of `view` under `name`: the complete manifest, the probe, and the
        tensors of every module (an expert of a level) that differs from `have` (key -> digest).

        Only rank 0 returns tensors, because only its result is used.
        """
        with self.engine.whole():
            tensors = tensors_of(self.model, view)
            manifest = {key: self._digest(key, tensor, view) for key, tensor in tensors.items()}
            changed = {_module(key) for key, known in manifest.items() if have.get(key) != known}
            wanted = changed if self.rank == 0 else set()
            delta = {
                key: tensor.cpu().clone()
                for key, tensor in tensors.items()
                if _module(key) in wanted
            }
        return Weights(name, version, manifest, delta, self.probe_T, self._probe(view))

    def clear_digests(self) -> None:
        """Clear the cached digests of the stored memory, which changed."""
        self._stored_digests.clear()

    def _digest(self, key: str, tensor: Tensor, view: str) -> str:
        """Return a tensor's digest; digests of stored tensors are cached, those of the student's
        patch are not.
        """
        path, _, part = key.rpartition(".")
        part, _, slot = part.partition("#")
        patch = self.levels[path].patch
        if view == STUDENT and patch and (part == "state" or int(slot) in patch.rows):
            return digest(tensor)
        if key not in self._stored_digests:
            self._stored_digests[key] = digest(tensor)
        return self._stored_digests[key]

    def _probe(self, view: str) -> tuple[float, ...]:
        """Return the log-probability of each probe token after the first, in nats."""
        if len(self.probe_T) < 2:
            return ()
        rows = PaddedRows.of([self.probe_T[:1]], [self.probe_T[1:]], self.module.pad, self.device)
        hidden_PD = self.module.hidden(rows, view)
        return tuple(
            token_logprobs(self.model.lm_head, hidden_PD, rows.token_P, LOGIT_CHUNK).tolist()
        )


def _module(key: str) -> str:
    """Return `<level>#<slot>` of a memory key, or the key itself for a level's state."""
    name, _, slot = key.partition("#")
    return f"{name.rsplit('.', 1)[0]}#{slot}" if slot else key
