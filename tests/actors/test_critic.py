"""Isolated copies: batched training and answering against one copy at a time; no weight changes."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from actors import batched_lora
from actors.batched_lora import TARGETS, BatchedAdamW, Copies, train
from sleep_rl.contracts.errors import Failure, InputError
from sleep_rl.contracts.records import Sampling, Trial
from sleep_rl.contracts.roles import Critic
from sleep_rl.model import checkpoints
from tests.fakes.models import ENGINE

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


class Recorded(BatchedAdamW):
    """Records the gradients of each optimizer step, and the factors before and after it."""

    def __init__(self, copies):
        super().__init__(copies)
        self.steps = []

    def step(self, lr_N, trained_N):
        before = [factor.detach().clone() for factor in self.factors]
        gradients = [factor.grad.clone() for factor in self.factors]
        super().step(lr_N, trained_N)
        self.steps.append((before, gradients, [factor.detach().clone() for factor in self.factors]))


def slow_gradients(model, factors, row):
    """Return (loss, gradients) of a single copy with the weights W + alpha/r B A; `factors`: A, B
    of each layer in turn.
    """
    layers = {
        n: m
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and n.rsplit(".", 1)[-1] in TARGETS
    }
    leaves = [factor.detach().clone().requires_grad_() for factor in factors]
    weights = {
        f"{name}.weight": layer.weight.detach() + ALPHA / RANK * b @ a
        for (name, layer), a, b in zip(layers.items(), leaves[::2], leaves[1::2], strict=True)
    }
    prompt, completion = row
    out = torch.func.functional_call(
        model, weights, (), {"input_ids": torch.tensor([prompt + completion])}
    )
    logp = out.logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    loss = -sum(logp[t, token] for t, token in enumerate(completion)) / len(completion)
    return loss.item(), torch.autograd.grad(loss, leaves)


def merged(model, factors):
    """Return a copy of the model with the factors added to its weights."""
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


def test_batched_training_equals_training_each_copy_alone(checkpoint, monkeypatch):
    """At each step a copy has the loss and gradients of a single copy with the same factors, and
    its update is that of torch's AdamW for these gradients, clipped to norm 1, with linear decay.

    Weights after several independent steps are not compared: Adam divides a gradient by its size,
    so near zero the last bit decides, which differs between processors.
    """
    model = checkpoints.load(checkpoint)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    recorders = []
    monkeypatch.setattr(
        batched_lora,
        "BatchedAdamW",
        lambda copies: recorders.append(Recorded(copies)) or recorders[0],
    )
    copies, losses = train(model, TRIALS, RANK, ALPHA, pad=0)
    (recorder,) = recorders
    assert len(recorder.steps) == 6
    for n, trial in enumerate(TRIALS):
        rows = batched_lora.rows_by_step(trial)
        assert sorted(rows) == sorted(list(trial.rows) * trial.epochs)
        alone = Copies(model, [trial.seed], RANK, ALPHA)
        factors = [torch.nn.Parameter(factor[0].detach().clone()) for factor in alone.factors()]
        optimizer = torch.optim.AdamW(factors, weight_decay=0.0)
        for step, row in enumerate(rows):
            values, gradients, moved = ([t[n] for t in part] for part in recorder.steps[step])
            assert all(
                torch.allclose(f, v, atol=1e-6) for f, v in zip(factors, values, strict=True)
            )
            loss, wanted = slow_gradients(model, values, row)
            largest = max(float(gradient.abs().max()) for gradient in wanted)
            for got, want in zip(gradients, wanted, strict=True):
                assert torch.allclose(got, want, rtol=1e-3, atol=1e-4 * largest), (n, step)
            for factor, gradient in zip(factors, gradients, strict=True):
                factor.grad = gradient.clone()
            torch.nn.utils.clip_grad_norm_(factors, 1.0)
            optimizer.param_groups[0]["lr"] = trial.lr * (1 - step / len(rows))
            optimizer.step()
            assert all(torch.allclose(f, m, atol=1e-6) for f, m in zip(factors, moved, strict=True))
        assert losses[n] == pytest.approx(loss, abs=1e-4)
        # a finished copy does not change while others are trained
        for factor, final in zip(moved, copies.factors(), strict=True):
            assert torch.equal(factor, final[n])
        assert max(float(b.abs().max()) for b in moved[1::2]) > 1e-3
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_factors_are_float32_for_a_bfloat16_model(checkpoint):
    """Steps of 1e-4 on weights near 0.02 are below bfloat16's resolution."""
    model = checkpoints.load(checkpoint, dtype=torch.bfloat16)
    trial = replace(TRIALS[0], lr=1e-4, epochs=20)
    copies, [loss] = train(model, [trial], RANK, ALPHA, pad=0)
    assert all(t.dtype == torch.float32 for t in copies.factors()) and math.isfinite(loss)
    start = Copies(model, [trial.seed], RANK, ALPHA)
    assert all(
        not torch.equal(copies.a[n], start.a[n]) and copies.b[n].abs().max() > 1e-4
        for n in copies.layers
    )
    assert copies.b[next(iter(copies.b))].abs().max() < 40 * 1e-4  # at most the sum of its steps


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
def test_batched_answers_equal_those_of_single_copies_and_change_no_weight(critic, checkpoint):
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
    # training changed the answers
    assert len({together[0], together[1], together[3], first[0]}) > 1
    assert critic.digest() == digest and critic.engine.llm.llm_engine.list_loras() == set()


@pytest.mark.stack
def test_invalid_trials_are_failures_with_a_reason(critic):
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
        "the trial has no questions",
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
def test_an_adapter_that_cannot_be_loaded_fails_its_own_trial_only(critic, monkeypatch):
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
    assert len(failed) == 1 and got[failed[0]].reason.startswith(
        "its adapter could not be loaded: "
    )
    assert [a for n, a in enumerate(got) if n not in failed] == [
        a for n, a in enumerate(wanted[:3]) if n not in failed
    ]
    assert critic.digest() == digest and critic.engine.llm.llm_engine.list_loras() == set()
