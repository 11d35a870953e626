"""The module that DeepSpeed trains: one frozen base, two memory states, and the losses of Knowledge
Seeding on their last hidden states.

Shape suffixes: B sequences, T tokens of the padded batch, P loss positions of the batch, D hidden
size.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from learners.batch import MicroBatchTensors, TeacherRows
from learners.hidden_state_cache import HiddenStateCache, cache_bytes
from learners.shared_prefix import run_after_prefixes, shared_prefixes
from learners.trunk import Trunk
from sleep_rl.config.schema import LOGIT_CHUNK, Config
from sleep_rl.contracts.records import STUDENT
from sleep_rl.model.decoder import run_layers
from sleep_rl.model.memory import Expert, first_layer, memory_levels, view_of
from sleep_rl.model.packing import PaddedRows
from sleep_rl.objectives import (
    imitation_loss,
    importance_weight,
    l_ks,
    seeding_terms,
    token_logprobs,
)


class Seeding(nn.Module):
    """Holds the model and the plastic experts, one per layer of the receiver: the only parameters
    with a gradient.

    The experts are registered in this module and referenced by the levels' patches, so that they
    are not in the model's checkpoint, and are the only parameters of DeepSpeed's optimizer.
    """

    def __init__(self, model: nn.Module, config: Config, pad: int = 0):
        super().__init__()
        self.model = model
        self.config = config
        self.pad = pad
        # models of model.teachers, while they are loaded; a tuple, so no submodules
        self.other_teachers: tuple[nn.Module, ...] = ()
        cache = HiddenStateCache(cache_bytes(config.learners.zero_stage))
        self.trunk = Trunk(first_layer(model.config.memory_levels), cache, pad)
        first_levels = [v for name, v in memory_levels(model).items() if name.endswith(".0")]
        self.plastic = nn.ModuleList(
            Expert(level.router[1], level.w_in[1], level.w_out[1]) for level in first_levels
        )

    def set_teachers(self, models: Iterable[nn.Module]) -> None:
        """Make `models` the teachers 1, 2, ... of rows, in place of earlier ones."""
        self.other_teachers = tuple(models)

    def teacher_model(self, teacher: int) -> nn.Module:
        """Return the model of the teacher with this number; see TrainingRow.teacher."""
        return self.other_teachers[teacher - 1] if teacher > 0 else self.model

    def hidden(self, rows: PaddedRows, view: str, model: nn.Module | None = None) -> Tensor:
        """Return the last hidden states [P, D] at the loss positions; `view`: TEACHER, STUDENT or
        CHECKPOINT; `model`: another model than the learner's own, e.g. one of model.teachers.
        """
        model = model or self.model
        decoder = model.model
        in_view = partial(view_of, model, view)
        is_own = model is self.model
        first = self.trunk.first_layer if is_own else 0
        checkpointed = self.config.learners.gradient_checkpointing
        with in_view():
            inputs_BTD = (
                self.trunk.hidden(decoder, rows) if is_own else decoder.embed_tokens(rows.ids_BT)
            )
            groups = self._shared_prefixes(decoder, rows)
            if groups:
                return decoder.norm(run_after_prefixes(decoder, inputs_BTD, rows, groups, first))
            hidden_BTD = run_layers(
                decoder,
                inputs_BTD,
                rows.mask_BT,
                first=first,
                recomputed_in=in_view if checkpointed else None,
            )
        return rows.at_positions(decoder.norm(hidden_BTD))

    def _shared_prefixes(self, decoder: nn.Module, rows: PaddedRows) -> list[tuple[list[int], int]]:
        """Return the groups of `shared_prefixes`; none where each sequence is computed whole."""
        learners = self.config.learners
        # ZeRO-3 gathers each layer in each pass, so that all ranks must make the same passes
        if learners.gradient_checkpointing or learners.zero_stage == 3:
            return []
        if getattr(decoder, "has_sliding_layers", False):
            return []
        return shared_prefixes(rows)

    def forward(
        self, batch: MicroBatchTensors, positions: Tensor, rewarded: Tensor, seeding: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (loss of a micro batch, sums for the metrics; see `_sums`).

        positions, rewarded: normalisers over the whole batch and all ranks, see `objectives.l_ks`.
        seeding: False for cross entropy on the completions (baselines, dreaming policy).
        """
        student_PD = self.hidden(batch.student, STUDENT)
        if not seeding:
            logp_P = self._logprobs(student_PD, batch.token_P)
            total = -(logp_P * batch.weight_P * batch.divergence_weight_P).sum()
            return total / positions.clamp(min=1), {"loss_sum": total.detach()}
        divergence_P, logp_P = self._divergence(batch, student_PD)
        policy_P = imitation_loss(
            logp_P,
            batch.behaviour_logp_P,
            batch.advantage_P,
            self.config.imitation.importance_cap,
        )
        seeding_loss_P = torch.lerp(divergence_P, -logp_P, batch.hard_share_P)
        loss = l_ks(
            seeding_loss_P * batch.weight_P * batch.divergence_weight_P,
            policy_P,
            batch.has_reward_P,
            self.config.objective.alpha,
            positions,
            rewarded,
        )
        return loss, _sums(batch, divergence_P.detach(), policy_P.detach(), logp_P.detach())

    def _logprobs(self, student_PD: Tensor, token_P: Tensor) -> Tensor:
        return token_logprobs(self.model.lm_head, student_PD, token_P, LOGIT_CHUNK)

    def _divergence(self, batch: MicroBatchTensors, student_PD: Tensor) -> tuple[Tensor, Tensor]:
        """Return ([P] divergence of each position from its teacher, [P] student's log-probability
        of the token).
        """
        parts: list[tuple[Tensor, Tensor]] = []
        positions: list[Tensor] = []
        for teacher, rows in batch.teachers.items():
            parts.append(self._divergence_from(teacher, rows, batch, student_PD))
            positions.append(rows.position_P)
        # a hard target: T has all probability on the token, so KL(T||S) is -log S(token)
        if len(batch.hard_target_P):
            logp_P = self._logprobs(
                student_PD[batch.hard_target_P], batch.token_P[batch.hard_target_P]
            )
            parts.append((-logp_P, logp_P))
            positions.append(batch.hard_target_P)
        if len(parts) == 1:
            return parts[0]
        in_order_P = torch.cat(positions).argsort()
        divergence_P = torch.cat([divergence for divergence, _ in parts])
        logp_P = torch.cat([logp for _, logp in parts])
        return divergence_P[in_order_P], logp_P[in_order_P]

    def _divergence_from(
        self, teacher: int, rows: TeacherRows, batch: MicroBatchTensors, student_PD: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the same at the positions of one teacher's rows."""
        model = self.teacher_model(teacher)
        temperature_P = batch.teacher_temperature_P
        return seeding_terms(
            self.model.lm_head,
            rows.hidden_PD,
            student_PD[rows.position_P],
            batch.token_P[rows.position_P],
            kind=self.config.objective.divergence,
            beta=self.config.objective.beta,
            chunk=LOGIT_CHUNK,
            temperature_P=None if temperature_P is None else temperature_P[rows.position_P],
            teacher_head=model.lm_head,
        )


def _sums(
    batch: MicroBatchTensors, divergence_P: Tensor, policy_P: Tensor, logp_P: Tensor
) -> dict[str, Tensor]:
    """Return sums over the micro batch, by name, for `optimization._metrics`; `rows` [B]:
    divergence of each row's answer in nats per token.
    """
    new_P = batch.weight_P * (1 - batch.self_replay_P)
    self_replay_P = batch.weight_P * batch.self_replay_P
    ratio_P = importance_weight(logp_P, batch.behaviour_logp_P, float("inf"))
    ratio_P = ratio_P * batch.has_behaviour_P
    gap_P = (logp_P - batch.behaviour_logp_P).abs() * batch.has_behaviour_P
    row_P = batch.student.row_P
    zeros_B = torch.zeros(int(row_P.max()) + 1, device=divergence_P.device)
    tokens_B = zeros_B.index_add(0, row_P, batch.answer_P)
    divergence_B = zeros_B.index_add(0, row_P, divergence_P * batch.answer_P)
    return {
        "rows": divergence_B / tokens_B.clamp(min=1),
        "divergence_sum": (divergence_P * new_P).sum(),
        "divergence_count": new_P.sum(),
        "replay_sum": (divergence_P * self_replay_P).sum(),
        "replay_count": self_replay_P.sum(),
        "policy_sum": (policy_P * batch.has_reward_P).sum(),
        "gap_sum": gap_P.sum(),
        "ratio_sum": ratio_P.sum(),
        "stale_count": batch.has_behaviour_P.sum(),
        "ratio_max": ratio_P.max() if ratio_P.numel() else ratio_P.sum(),
    }
