"""Small inputs of the learner tests, and slow versions of its losses in the paper's indices."""

import torch

from sleep_rl.contracts.records import CHECKPOINT, STUDENT, TEACHER, UNTOUCHED_BASE, TrainingRow
from sleep_rl.model.memory import view_of
from tests.fakes.configs import toy

CONFIG = toy(
    model={"experts": 4, "d_low": 16, "top_k": 4},
    sleep={"lr": 1e-2, "warmup": 0, "batch": 4},
    wake={"lr": 0.1},
    learners={"pass_tokens": 12, "threads": 1},
)
ROWS = [
    TrainingRow((5, 6), (7, 8, 9, 1), teacher_T=(5, 40, 41, 42, 6)),
    TrainingRow((5, 6), (7, 8, 1), replay=True),
    TrainingRow(
        (5, 6, 7),
        (30, 31, 1),
        teacher_T=(5, 40, 41, 42, 6, 7),
        advantage=1.0,
        behaviour_T=(-5.0, -6.0, -7.0),
    ),
    TrainingRow(
        (5, 6, 7),
        (32, 1),
        teacher_T=(5, 40, 41, 42, 6, 7),
        advantage=-1.0,
        behaviour_T=(-5.5, -3.0),
        x_length=1,
    ),
]
DOCUMENTS = [tuple(range(start, start + 6 + start % 3)) for start in (10, 30, 50, 70, 90)]


def logprobs(model, view, prompt, completion):
    """Return the log-probabilities [T, V] that predict the completion, one sequence at a time."""
    with view_of(model, view):
        logits = model(torch.tensor([prompt + completion])).logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def slow_l_ks(
    model,
    rows,
    alpha,
    cap=2.0,
    prompt_weight=CONFIG.objective.prompt_weight,
    teachers=(),
    mean="token",
):
    """Return -J_KS of equation 6 with the mixture of equation 3, token by token; T is the memory's
    TEACHER state, or the one of `teachers` that a row names. `mean`: objective.mean.
    """
    divergence = policy = 0.0
    positions = rewarded = 0
    means = []  # Div(T||S)(y|x) of each sequence
    for row in rows:
        student = logprobs(model, STUDENT, row.prompt_T, row.completion_T)
        source = teachers[row.teacher - 1] if row.teacher > 0 else model
        view = CHECKPOINT if row.teacher == UNTOUCHED_BASE else TEACHER
        teacher = logprobs(source, view, row.teacher_T or row.prompt_T, row.completion_T).detach()
        shared = min(teacher.shape[-1], student.shape[-1])  # ids beyond pad one of the embeddings
        teacher = teacher[:, :shared].log_softmax(-1)
        student_shared = student[:, :shared].log_softmax(-1)
        of_sequence = shares = 0.0
        for t, token in enumerate(row.completion_T):
            share, power = (prompt_weight, 1.0) if t < row.x_length else (1.0, 1 / row.temperature)
            raised = teacher[t].exp() ** power
            p = raised / raised.sum()  # T at the row's temperature
            kl = (p * (p.log() - student_shared[t])).sum()
            hard = 0.0 if t < row.x_length else row.hard_share
            at_token = share * ((1 - hard) * kl - hard * student[t, token])
            divergence = divergence + at_token
            positions += share
            of_sequence = of_sequence + at_token
            shares += share
            if row.advantage is not None:
                weight = min(float((student[t, token].detach() - row.behaviour_T[t]).exp()), cap)
                policy = policy - weight * row.advantage * student[t, token]
                rewarded += 1
        means.append(of_sequence / shares)
    over_batch = divergence / positions if mean == "token" else sum(means) / len(means)
    return alpha * over_batch + (1 - alpha) * policy / rewarded
