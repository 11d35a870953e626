"""The module that DeepSpeed trains: one frozen base, two memory states, and the losses on their
last hidden states.

Shape suffixes: B sequences, T tokens of the padded batch, P loss positions of the batch, D hidden
size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from learners.hidden_state_cache import HiddenStateCache, Reading, alike
from sleep_rl.contracts.records import HARD_TARGET, STUDENT, TEACHER, Metrics, TrainingRow
from sleep_rl.model.memory import Expert, memory_levels, view_of
from sleep_rl.objectives import imitation, importance, l_ks, seeding_terms, token_logprobs


@dataclass(frozen=True)
class Rows:
    """Right-padded rows of one reader (student or teacher), and where its predictions of the
    completions lie.
    """

    ids_BT: Tensor
    mask_BT: Tensor
    flat_P: Tensor  # positions in the flattened [B*T] grid

    @staticmethod
    def of(
        prefixes_B: list[tuple[int, ...]], completions_B: list[tuple[int, ...]], pad: int, device
    ) -> Rows:
        width = max(len(p) + len(c) for p, c in zip(prefixes_B, completions_B, strict=True))
        ids = torch.full((len(prefixes_B), width), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        flat: list[int] = []
        for row, (prefix, completion) in enumerate(zip(prefixes_B, completions_B, strict=True)):
            both = prefix + completion
            ids[row, : len(both)] = torch.tensor(both)
            mask[row, : len(both)] = 1
            flat.extend(range(row * width + len(prefix) - 1, row * width + len(both) - 1))
        return Rows(ids.to(device), mask.to(device), torch.tensor(flat, device=device))


@dataclass(frozen=True)
class Batch:
    """A micro batch on the device."""

    student: Rows
    # who -> what it reads and whether that comes again,
    teachers: dict[int, tuple[list[tuple[Reading, bool]], Tensor]]
    # and which of the P positions are its
    told_P: Tensor  # the positions where the text itself stands for a teacher
    token_P: Tensor
    weight_P: Tensor  # 0 for filler rows that only keep the ranks in step
    temperature_P: Tensor | None  # of the teacher's distribution; None: 1 everywhere
    share_P: Tensor  # what a position counts in the divergence: prompt_weight on x, 1 on y
    advantage_P: Tensor
    behaviour_P: Tensor
    rewarded_P: Tensor
    stale_P: Tensor  # 1 where the sampler's log-probability is known
    replay_P: Tensor
    answer_P: Tensor  # 1 on the answer y
    row_P: Tensor  # which row of the micro batch


def over_tokens(row: TrainingRow, x: float, y: float) -> list[float]:
    """A value for each token of the completion: one on x, another on y."""
    return [x] * row.x_length + [y] * (len(row.completion_T) - row.x_length)


def collate(
    rows_B: list[TrainingRow],
    weights_B: list[float],
    pad: int,
    device,
    teacher: bool = True,
    prompt_weight: float = 1.0,
) -> Batch:
    """Builds the tensors of a micro batch from its rows; every row needs a non-empty prompt and
    completion.
    """
    completions = [r.completion_T for r in rows_B]

    def spread(values_B: list[float]) -> Tensor:
        out = [v for v, c in zip(values_B, completions, strict=True) for _ in c]
        return torch.tensor(out, dtype=torch.float32, device=device)

    row_P = [b for b, c in enumerate(completions) for _ in c]
    teachers = {}
    for who in sorted({r.teacher for r in rows_B} - {HARD_TARGET}) if teacher else ():
        mine = [r for r in rows_B if r.teacher == who]
        where_P = torch.tensor(
            [p for p, b in enumerate(row_P) if rows_B[b].teacher == who], device=device
        )
        # What the teacher wrote itself is drawn again and again; a sample of the student's comes
        # once.
        teachers[who] = (
            [((who, r.teacher_T or r.prompt_T, r.completion_T), not r.behaviour_T) for r in mine],
            where_P,
        )
    known = [r.behaviour_T or (0.0,) * len(r.completion_T) for r in rows_B]
    return Batch(
        student=Rows.of([r.prompt_T for r in rows_B], completions, pad, device),
        teachers=teachers,
        told_P=torch.tensor(
            [p for p, b in enumerate(row_P) if rows_B[b].teacher == HARD_TARGET],
            dtype=torch.long,
            device=device,
        ),
        token_P=torch.tensor([t for c in completions for t in c], device=device),
        weight_P=spread(weights_B),
        temperature_P=(
            None
            if all(r.temperature == 1 for r in rows_B)
            else torch.tensor(
                [t for r in rows_B for t in over_tokens(r, 1.0, r.temperature)], device=device
            )
        ),
        share_P=torch.tensor(
            [share for r in rows_B for share in over_tokens(r, prompt_weight, 1.0)], device=device
        ),
        advantage_P=spread([r.advantage or 0.0 for r in rows_B]),
        behaviour_P=torch.tensor(
            [p for row in known for p in row], dtype=torch.float32, device=device
        ),
        rewarded_P=spread([float(r.advantage is not None) for r in rows_B]) * spread(weights_B),
        stale_P=spread([float(bool(r.behaviour_T)) for r in rows_B]) * spread(weights_B),
        replay_P=spread([float(r.replay) for r in rows_B]),
        answer_P=torch.tensor(
            [share for r in rows_B for share in over_tokens(r, 0.0, 1.0)], device=device
        ),
        row_P=torch.tensor(row_P, device=device),
    )


class Seeding(nn.Module):
    """Holds the model and the plastic experts: the only parameters with a gradient, one per layer
    of the receiver.

    The experts are registered here and referenced by the levels' patches, so that they are no part
    of a checkpoint and exactly what DeepSpeed's optimizer gets.
    """

    def __init__(
        self, model: nn.Module, config, pad: int = 0, recall: HiddenStateCache | None = None
    ):
        """`recall`: where the teacher's hidden states of a night are kept; None: computed anew, all
        rows in one pass.
        """
        super().__init__()
        self.model, self.config, self.pad, self.recall = model, config, pad, recall
        # model.teachers, while they are there; no parts of this module
        self.others: tuple[nn.Module, ...] = ()
        firsts = [level for name, level in memory_levels(model).items() if name.endswith(".0")]
        self.plastic = nn.ModuleList(Expert(v.router[1], v.w_in[1], v.w_out[1]) for v in firsts)

    def hidden(self, rows: Rows, view: str, model: nn.Module | None = None) -> Tensor:
        """[P, D] last hidden states at the loss positions, in the named state (of another model, if
        one is given).
        """
        model = model or self.model
        with view_of(model, view):
            out = model.model(input_ids=rows.ids_BT, attention_mask=rows.mask_BT, use_cache=False)
        return out.last_hidden_state.flatten(0, 1)[rows.flat_P]

    def forget(self) -> None:
        """Drops what is remembered of the teacher."""
        if self.recall:
            self.recall.clear()

    @torch.no_grad()
    def _taught(self, readings: list[tuple[Reading, bool]], model: nn.Module) -> Tensor:
        """[P, D] last hidden states of the teacher `model`: remembered ones, and the others in
        passes of like length.
        """
        device, recall = next(model.parameters()).device, self.recall
        held = [recall.get(key) if recall and again else None for key, again in readings]
        new = [i for i, found in enumerate(held) if found is None]
        both = [readings[i][0][1:] for i in new]
        for group in (
            alike([len(p) + len(c) for p, c in both]) if recall else [list(range(len(new)))]
        ):
            rows = Rows.of(
                [both[i][0] for i in group], [both[i][1] for i in group], self.pad, device
            )
            pieces = self.hidden(rows, TEACHER, model).split([len(both[i][1]) for i in group])
            for i, piece in zip(group, pieces, strict=True):
                key, again = readings[new[i]]
                held[new[i]] = piece
                if recall and again:
                    recall.put(key, piece)
        return torch.cat([found.to(device) for found in held])

    def _terms(self, batch: Batch, student_PD: Tensor) -> tuple[Tensor, Tensor]:
        """([P] divergence from the teacher of each position, [P] student log-probability of the
        token).
        """
        s, chunk = self.config.objective, self.config.learners.logit_chunk
        found, where, sharp_P = [], [], batch.temperature_P
        for who, (readings, where_P) in batch.teachers.items():
            model = self.others[who - 1] if who else self.model
            found.append(
                seeding_terms(
                    self.model.lm_head,
                    self._taught(readings, model),
                    student_PD[where_P],
                    batch.token_P[where_P],
                    kind=s.divergence,
                    beta=s.beta,
                    chunk=chunk,
                    temperature_P=sharp_P if sharp_P is None else sharp_P[where_P],
                    teacher_head=model.lm_head,
                )
            )
            where.append(where_P)
        # the text itself: all of T lies on its token, and KL(T||S) is -log S(token)
        if len(batch.told_P):
            logp_P = token_logprobs(
                self.model.lm_head,
                student_PD[batch.told_P],
                batch.token_P[batch.told_P],
                chunk,
            )
            found.append((-logp_P, logp_P))
            where.append(batch.told_P)
        if len(found) == 1:
            return found[0]
        back_P = torch.cat(where).argsort()
        return torch.cat([d for d, _ in found])[back_P], torch.cat([p for _, p in found])[back_P]

    def forward(
        self, batch: Batch, positions: Tensor, rewarded: Tensor, seeding: bool
    ) -> tuple[Tensor, dict]:
        """(loss, sums for the metrics). `seeding` False: cross entropy on the completions (the
        baselines).
        """
        config = self.config
        student_PD = self.hidden(batch.student, STUDENT)
        if not seeding:
            logp_P = token_logprobs(
                self.model.lm_head, student_PD, batch.token_P, config.learners.logit_chunk
            )
            total = -(logp_P * batch.weight_P).sum()
            return total / positions.clamp(min=1), {"loss_sum": total.detach()}
        div_P, logp_P = self._terms(batch, student_PD)
        policy_P = imitation(
            logp_P, batch.behaviour_P, batch.advantage_P, config.imitation.importance_cap
        )
        loss = l_ks(
            div_P * batch.weight_P * batch.share_P,
            policy_P,
            batch.rewarded_P,
            config.objective.alpha,
            positions,
            rewarded,
        )
        return loss, self._sums(batch, div_P.detach(), policy_P.detach(), logp_P.detach())

    def _sums(
        self, batch: Batch, div_P: Tensor, policy_P: Tensor, logp_P: Tensor
    ) -> dict[str, Tensor]:
        weight_P, replay_P = batch.weight_P, batch.replay_P
        ratio_P = importance(logp_P, batch.behaviour_P, float("inf")) * batch.stale_P
        count = int(batch.row_P.max()) + 1
        answers_B, sums_B = (
            torch.zeros(count, device=div_P.device).index_add(0, batch.row_P, value)
            for value in (batch.answer_P, div_P * batch.answer_P)
        )
        return {
            "rows": sums_B / answers_B.clamp(min=1),
            "divergence_sum": (div_P * weight_P * (1 - replay_P)).sum(),
            "divergence_count": (weight_P * (1 - replay_P)).sum(),
            "replay_sum": (div_P * weight_P * replay_P).sum(),
            "replay_count": (weight_P * replay_P).sum(),
            "policy_sum": (policy_P * batch.rewarded_P).sum(),
            "gap_sum": ((logp_P - batch.behaviour_P).abs() * batch.stale_P).sum(),
            "ratio_sum": ratio_P.sum(),
            "stale_count": batch.stale_P.sum(),
            "ratio_max": ratio_P.max() if ratio_P.numel() else ratio_P.sum(),
        }


def averages(totals: dict[str, float], rewarded: int) -> Metrics:
    """Means from the sums over all ranks, under the journal's names."""
    out = {
        k: totals[k] for k in ("loss", "grad_norm", "lr", "tokens_trained", "sequences", "seconds")
    }
    pairs = {
        "divergence": ("divergence_sum", "divergence_count"),
        "divergence_replay": ("replay_sum", "replay_count"),
        "logprob_gap": ("gap_sum", "stale_count"),
        "is_ratio_mean": ("ratio_sum", "stale_count"),
    }
    for name, (top, bottom) in pairs.items():
        if totals.get(bottom, 0.0) > 0:
            out[name] = totals[top] / totals[bottom]
    if rewarded and "policy_sum" in totals:
        out["policy_loss"] = totals["policy_sum"] / rewarded
    if totals.get("stale_count", 0.0) > 0:
        out["is_ratio_max"] = totals["ratio_max"]
    return out
