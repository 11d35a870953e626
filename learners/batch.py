"""A micro batch as tensors: the student's tokens, teachers' hidden states, weights of loss
positions.

Shape suffixes: B sequences, T tokens of the padded batch, P loss positions of the batch: the
completion tokens of all rows, one row after the other; D hidden size. A completion is x (the
self-made prompt up to the marker) followed by the answer y.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sleep_rl.contracts.records import HARD_TARGET, TrainingRow
from sleep_rl.model.packing import PaddedRows


@dataclass(frozen=True)
class TeacherRows:
    """The loss positions of one teacher's rows in a micro batch."""

    hidden_PD: Tensor  # the teacher's last hidden states there
    position_P: Tensor  # their indices among the loss positions of the batch


@dataclass(frozen=True)
class MicroBatchTensors:
    """A micro batch on the device. Values are per loss position."""

    student: PaddedRows
    teachers: dict[int, TeacherRows]  # TrainingRow.teacher -> its rows
    hard_target_P: Tensor  # indices of positions with a hard target: the token itself
    token_P: Tensor  # the completions' tokens
    weight_P: Tensor  # 1; 0 for filler rows
    # of the teacher's distribution; None: 1 everywhere
    teacher_temperature_P: Tensor | None
    hard_share_P: Tensor  # of -log S(token) in the loss; the rest is the divergence
    divergence_weight_P: Tensor  # of `loss_weights`
    advantage_P: Tensor  # 0 for rows without a reward
    behaviour_logp_P: Tensor  # log-probability under the sampler; 0 where it is unknown
    has_reward_P: Tensor  # weight_P where the row has an advantage, else 0
    has_behaviour_P: Tensor  # weight_P where the sampler's log-probability is known, else 0
    self_replay_P: Tensor  # 1 on rows of self-replay and reading rows
    answer_P: Tensor  # 1 on y, 0 on x


def per_token(row: TrainingRow, on_prompt: float, on_answer: float) -> list[float]:
    """Return one value per completion token: `on_prompt` for x, `on_answer` for y."""
    return [on_prompt] * row.x_length + [on_answer] * (len(row.completion_T) - row.x_length)


def without_prompt_loss(row: TrainingRow) -> TrainingRow:
    """Return a row with the same loss where the weight on x is 0: x belongs to the prompts, so that
    no logits are computed there.

    The reward term is on the whole completion, so that a rewarded row is returned unchanged.
    """
    x_length = row.x_length
    if not 0 < x_length < len(row.completion_T) or row.advantage is not None:
        return row
    x_T = row.completion_T[:x_length]
    return replace(
        row,
        prompt_T=row.prompt_T + x_T,
        completion_T=row.completion_T[x_length:],
        teacher_T=(row.teacher_T or row.prompt_T) + x_T,
        behaviour_T=row.behaviour_T[x_length:],
        x_length=0,
    )


def loss_weights(row: TrainingRow, prompt_weight: float, mean: str) -> list[float]:
    """Return the weight in the loss of each completion token: `prompt_weight` on x and 1 on y, with
    `mean` (objective.mean) "sequence" divided by their sum, so that a row weighs 1 as a whole.

    A row without weights above 0 keeps its zeros.
    """
    weights = per_token(row, prompt_weight, 1.0)
    total = sum(weights)
    if mean == "token" or total == 0:
        return weights
    return [weight / total for weight in weights]


def collate(
    rows_B: list[TrainingRow],
    weights_B: list[float],
    pad: int,
    device: str | torch.device,
    *,
    teacher_B: list[Tensor | None] | None = None,
    prompt_weight: float = 1.0,
    mean: str = "token",
) -> MicroBatchTensors:
    """Return the tensors of a micro batch.

    rows_B: rows with a non-empty prompt and a non-empty completion.
    weights_B: 1 per row, 0 for a filler row.
    teacher_B: the teacher's last hidden states [T, D] of each completion, as `Teacher.hidden`
        returns them; None for cross entropy, which has no teacher.
    prompt_weight, mean: see `loss_weights`.
    """

    def floats(values_P: list[float]) -> Tensor:
        return torch.tensor(values_P, dtype=torch.float32, device=device)

    def by_row(values_B: list[float]) -> Tensor:
        return floats(
            [v for v, row in zip(values_B, rows_B, strict=True) for _ in row.completion_T]
        )

    def by_token(values_BT: list[list[float]]) -> Tensor:
        return floats([value for values_T in values_BT for value in values_T])

    completions_B = [row.completion_T for row in rows_B]
    student = PaddedRows.of([row.prompt_T for row in rows_B], completions_B, pad, device)
    weight_P = by_row(weights_B)
    return MicroBatchTensors(
        student=student,
        teachers=_teacher_rows(rows_B, teacher_B, device) if teacher_B is not None else {},
        token_P=student.token_P,
        hard_target_P=_positions_of(HARD_TARGET, rows_B, device),
        weight_P=weight_P,
        teacher_temperature_P=(
            None
            if all(row.temperature == 1 for row in rows_B)
            else by_token([per_token(row, 1.0, row.temperature) for row in rows_B])
        ),
        hard_share_P=by_token([per_token(row, 0.0, row.hard_share) for row in rows_B]),
        divergence_weight_P=by_token([loss_weights(row, prompt_weight, mean) for row in rows_B]),
        advantage_P=by_row([row.advantage or 0.0 for row in rows_B]),
        behaviour_logp_P=by_token(
            [list(row.behaviour_T) or [0.0] * len(row.completion_T) for row in rows_B]
        ),
        has_reward_P=by_row([float(row.advantage is not None) for row in rows_B]) * weight_P,
        has_behaviour_P=by_row([float(bool(row.behaviour_T)) for row in rows_B]) * weight_P,
        self_replay_P=by_row([float(row.replay) for row in rows_B]),
        answer_P=by_token([per_token(row, 0.0, 1.0) for row in rows_B]),
    )


def _teacher_rows(
    rows_B: list[TrainingRow], hidden_B: list[Tensor | None], device: str | torch.device
) -> dict[int, TeacherRows]:
    pairs = list(zip(rows_B, hidden_B, strict=True))
    return {
        teacher: TeacherRows(
            torch.cat([hidden_TD for row, hidden_TD in pairs if row.teacher == teacher]),
            _positions_of(teacher, rows_B, device),
        )
        for teacher in sorted({row.teacher for row in rows_B} - {HARD_TARGET})
    }


def _positions_of(teacher: int, rows_B: list[TrainingRow], device: str | torch.device) -> Tensor:
    """Return the indices of the loss positions of the rows with this teacher."""
    teacher_P = [row.teacher for row in rows_B for _ in row.completion_T]
    positions = [p for p, other in enumerate(teacher_P) if other == teacher]
    return torch.tensor(positions, dtype=torch.long, device=device)
