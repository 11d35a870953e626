"""Isolated copies: trained together as they would be alone, answering together as they would alone,
leaving no trace.
"""

import copy
import math
from dataclasses import replace

import pytest
import torch

from actors.batched_lora import TARGETS, Copies, train
from sleep_rl.contracts.errors import Failure, InputError
from sleep_rl.contracts.records import Sampling, Trial
from sleep_rl.contracts.roles import Critic
from sleep_rl.model import checkpoints
from tests.conftest import ENGINE

RANK = 8
ALPHA = 16.0
ROWS = (((5, 6), (7, 8, 9, 1)), ((5, 6, 7), (30, 31, 1)), ((5,), (40, 41, 42, 43, 44, 1)))
QUESTIONS = ((5, 6), (5, 6, 7), (9, 10, 11, 12))
TRIALS = [
    Trial(ROWS[:2], QUESTIONS, seed=3, lr=5e-3, epochs=3),
    Trial(ROWS[1:], QUESTIONS, seed=4, lr=2e-2, epochs=2),
    Trial(ROWS, QUESTIONS[:1], seed=5, lr=1e-2, epochs=1),
    Trial(ROWS[:1], QUESTIONS, seed=3, lr=5e-3, epochs=5),
]
GREEDY = Sampling(6, 0.0, (1,))


@pytest.fixture(scope="module")
def checkpoint(sleep_checkpoint):
    return sleep_checkpoint("qwen3", "dense")


def slow_copy(model, trial, order):
    """One LoRA copy, trained alone: the factors in the weights W + alpha/r B A, torch's own AdamW,
    clipping to norm 1, linear decay. Returns {layer: (A, B)}.
    """
    layers = {
        n: m
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and n.rsplit(".", 1)[-1] in TARGETS
    }
    start = Copies(model, [trial.seed], RANK, ALPHA)
    a = {n: start.a[n][0].detach().clone().requires_grad_() for n in layers}
    b = {n: start.b[n][0].detach().clone().requires_grad_() for n in layers}
    base = {n: m.weight.detach().clone() for n, m in layers.items()}
    factors = [*a.values(), *b.values()]
    optimizer = torch.optim.AdamW(factors, lr=trial.lr, weight_decay=0.0)
    for step, (prompt, completion) in enumerate(order):
        weights = {f"{n}.weight": base[n] + ALPHA / RANK * b[n] @ a[n] for n in layers}
        out = torch.func.functional_call(
            model, weights, (), {"input_ids": torch.tensor([prompt + completion])}
        )
        logp = out.logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        loss = -sum(logp[t, token] for t, token in enumerate(completion)) / len(completion)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        optimizer.param_groups[0]["lr"] = trial.lr * (1 - step / len(order))
        optimizer.step()
    return {n: (a[n].detach(), b[n].detach()) for n in layers}


def merged(model, factors):
    """A model of its own with the factors added to its weights."""
    other = copy.deepcopy(model)
    for name, (a, b) in factors.items():
        other.get_submodule(name).weight.data += ALPHA / RANK * b @ a
    return other


def greedy(model, question):
    ids = list(question)
    while len(ids) < len(question) + GREEDY.max_tokens:
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 1:
            break
    return tuple(ids[len(question) :])


def test_copies_that_are_trained_together_are_those_that_are_trained_alone(checkpoint):
    from actors.batched_lora import rows_by_step

    model = checkpoints.load(checkpoint)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    copies, losses = train(model, TRIALS, RANK, ALPHA, pad=0)
    for n, trial in enumerate(TRIALS):
        order = rows_by_step(trial)
        assert sorted(order) == sorted(list(trial.rows) * trial.epochs)
        for name, (a, b) in slow_copy(checkpoints.load(checkpoint), trial, order).items():
            assert torch.allclose(copies.a[name][n], a, atol=2e-4), (n, name)
            assert torch.allclose(copies.b[name][n], b, atol=2e-4), (n, name)
            assert float(b.abs().max()) > 1e-3
    assert all(math.isfinite(loss) for loss in losses)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_in_bfloat16_copies_keep_their_own_precision(checkpoint):
    """Steps of 1e-4 on weights near 0.02 are below bfloat16's resolution; the factors learn all the
    same.
    """
    model = checkpoints.load(checkpoint, dtype=torch.bfloat16)
    trial = replace(TRIALS[0], lr=1e-4, epochs=20)
    copies, [loss] = train(model, [trial], RANK, ALPHA, pad=0)
    assert all(t.dtype == torch.float32 for t in copies.factors()) and math.isfinite(loss)
    start = Copies(model, [trial.seed], RANK, ALPHA)
    assert all(
        not torch.equal(copies.a[n], start.a[n]) and copies.b[n].abs().max() > 1e-4
        for n in copies.layers
    )
    assert copies.b[next(iter(copies.b))].abs().max() < 40 * 1e-4  # no more than its steps


@pytest.fixture(scope="module")
def critic(checkpoint):
    from actors.critic import CriticWorker

    worker = CriticWorker(
        checkpoint,
        dtype="float32",
        engine=ENGINE,
        seed=0,
        rank=RANK,
        alpha=ALPHA,
        copies_per_pass=3,
    )
    yield worker
    worker.close()


@pytest.mark.stack
def test_copies_answer_in_one_batch_what_each_would_alone_and_leave_no_trace(critic, checkpoint):
    assert isinstance(critic, Critic)
    model = checkpoints.load(checkpoint)
    digest = critic.digest()
    untouched = [Trial((), QUESTIONS)]
    first = critic.try_out(untouched, "base", 0, GREEDY)
    together = critic.try_out([*TRIALS, *untouched], "base", 0, GREEDY)
    copies, _ = train(model, TRIALS, RANK, ALPHA, pad=0)
    for n, trial in enumerate(TRIALS):
        merged_model = merged(
            model,
            {
                name: (copies.a[name][n].detach(), copies.b[name][n].detach())
                for name in copies.layers
            },
        )
        assert together[n] == tuple(greedy(merged_model, question) for question in trial.questions)
        assert critic.try_out([trial], "base", 0, GREEDY) == [together[n]]
    assert together[-1] == first[0] == tuple(greedy(model, question) for question in QUESTIONS)
    # learning changed what is said
    assert len({together[0], together[1], together[3], first[0]}) > 1
    assert critic.digest() == digest and critic.engine.llm.llm_engine.list_loras() == set()


@pytest.mark.stack
def test_what_cannot_be_tried_is_a_failure_with_its_reason(critic):
    long = tuple(range(5, 105)) * 2
    bad = [
        replace(TRIALS[0], questions=()),
        replace(TRIALS[0], epochs=0),
        replace(TRIALS[0], lr=float("nan")),
        replace(TRIALS[0], rows=(((), (7, 1)),)),
        replace(TRIALS[0], rows=(((5,), long),)),
        replace(TRIALS[0], questions=((5,), long)),
        replace(TRIALS[0], lr=1e30),
    ]
    *failed, good = critic.try_out([*bad, TRIALS[2]], "base", 0, GREEDY)
    assert all(isinstance(f, Failure) and f.where == "critic" for f in failed)
    assert [f.reason.split(",")[0].split(":")[0] for f in failed] == [
        "nothing is asked",
        "epochs from 1 and lr above 0 are allowed",
        "epochs from 1 and lr above 0 are allowed",
        "a training row without prompt or completion",
        "a training row",
        "200 tokens and a new one do not fit into max_model_len 128",
        failed[-1].reason,
    ]
    assert failed[-1].reason.startswith("the copy's loss became ")
    assert [good] == critic.try_out([TRIALS[2]], "base", 0, GREEDY)
    with pytest.raises(InputError, match="temperature 0 is allowed, got 1"):
        critic.try_out(TRIALS, "base", 0, Sampling(4, 1.0))


@pytest.mark.stack
def test_an_adapter_that_cannot_be_loaded_fails_its_own_dream_only(critic, monkeypatch):
    wanted = critic.try_out(TRIALS, "base", 0, GREEDY)
    save = Copies.save

    def damaged(self, number, folder):
        save(self, number, folder)
        if number == 1:
            (folder / "adapter_model.safetensors").write_bytes(b"no tensors")

    monkeypatch.setattr(Copies, "save", damaged)
    digest = critic.digest()
    got = critic.try_out(TRIALS[:3], "base", 0, GREEDY)
    failed = [n for n, answers in enumerate(got) if isinstance(answers, Failure)]
    assert len(failed) == 1 and got[failed[0]].reason.startswith("its adapter was not loaded: ")
    assert [a for n, a in enumerate(got) if n not in failed] == [
        a for n, a in enumerate(wanted[:3]) if n not in failed
    ]
    assert critic.digest() == digest and critic.engine.llm.llm_engine.list_loras() == set()
