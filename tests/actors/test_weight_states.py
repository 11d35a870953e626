"""Loading pushed versions of weights into a running engine."""

from __future__ import annotations

import pytest
import torch

from sleep_rl.contracts.errors import RunError
from sleep_rl.contracts.records import Request, Weights
from sleep_rl.model import checkpoints
from sleep_rl.model.memory import memory_levels, tensors_of
from sleep_rl.model.tensor_digest import digest
from tests.fakes.pushes import (
    NIGHT,
    PROBE,
    REQUESTS,
    SAMPLING,
    changed_model,
    gap,
    hf_logprobs,
    weights_of,
)

pytestmark = pytest.mark.stack


def test_the_first_push_is_a_delta_of_the_checkpoint(rollout, path, have):
    """Only the tensors that a night changed are sent and copied."""
    weights = weights_of(changed_model(path, 7), "sft", 3, have)
    loaded = rollout(path).load(weights)
    assert len(weights.tensors) == 2 * 2  # router and w_out of one slot in two layers
    assert (loaded.name, loaded.version, loaded.probe_gap < 1e-4) == ("sft", 3, True)
    rollout(path).sample(REQUESTS[:1], "base", 0, SAMPLING)
    again = rollout(path).load(weights)
    assert (again.tensors, again.bytes) == (4, 2 * (64 + 16 * 64) * 4)


def test_switching_states_gives_each_its_own_log_probabilities(worker, start, path):
    """The log-probabilities are those of transformers, whatever was cached before."""
    student = changed_model(path, 1)
    for _ in range(2):
        assert gap(start, worker, "teacher", 1) < 1e-4
        assert gap(student, worker, "student", 1) < 1e-4
    assert gap(start, worker, "student", 1) > 1e-2  # the states do differ


def test_a_push_changes_slot_states(worker, path, have):
    """The tensor `state` is pushed like the others."""
    model = checkpoints.load(path)
    for level in memory_levels(model).values():
        level.set_state([0, 1, 0, 1, 0])
    worker.load(weights_of(model, "joint", 1, have))
    assert gap(model, worker, "joint", 1) < 1e-4


def test_the_prefix_cache_is_reset_when_weights_change(worker, path, monkeypatch):
    """Without the reset, cached keys of the old version give wrong log-probabilities; a reset that
    vLLM refuses raises.
    """
    engine = worker.engine.llm.llm_engine
    student = changed_model(path, 1)
    assert gap(student, worker, "student", 1) < 1e-4
    prompt = Request(tuple(range(90, 130)))
    with monkeypatch.context() as patch:
        patch.setattr(engine, "reset_prefix_cache", lambda **_: True)
        worker.sample([prompt], "teacher", 1, SAMPLING)
        [stale] = worker.sample([prompt], "student", 1, SAMPLING)
    expected = hf_logprobs(student, stale.prompt_T + stale.completion_T)[-len(stale.completion_T) :]
    assert max(abs(a - b) for a, b in zip(stale.logprobs_T, expected, strict=True)) > 1e-3
    with monkeypatch.context() as patch:
        patch.setattr(engine, "reset_prefix_cache", lambda **_: False)
        with pytest.raises(RunError, match="prefix cache"):
            worker.sample(REQUESTS, "teacher", 1, SAMPLING)
    assert gap(student, worker, "student", 1) < 1e-4


def test_drop_caches_resets_the_prefix_cache(worker):
    """No token of an earlier context is read from the cache afterwards."""
    worker.sample(REQUESTS, "teacher", 1, SAMPLING)
    cached = []
    for drop in (False, True):
        if drop:
            worker.drop_caches()
        [output] = worker.engine.generate(
            [REQUESTS[0].context_T + REQUESTS[0].prompt_T],
            [worker.engine.sampling_params(46, 0, SAMPLING)],
        )
        cached.append(output.num_cached_tokens)
    assert cached[0] > 0 == cached[1]


def damaged(weights: Weights, **changes) -> Weights:
    return Weights(**{**weights.__dict__, **changes})


W_OUT = f"{NIGHT}.w_out#4"
W_IN = f"{NIGHT}.w_in#4"
HELD = f"{NIGHT}.router#3"


def replaced(w: Weights, tensor: torch.Tensor) -> Weights:
    """Replace a tensor and its digest."""
    return damaged(
        w, tensors=w.tensors | {W_OUT: tensor}, manifest=w.manifest | {W_OUT: digest(tensor)}
    )


def without(w: Weights, key: str) -> dict[str, torch.Tensor]:
    return {k: t for k, t in w.tensors.items() if k != key}


def corrupt_byte(w: Weights) -> Weights:
    tensor = w.tensors[W_OUT].clone()
    tensor.view(torch.uint8)[3, 5] ^= 1
    return damaged(w, tensors=w.tensors | {W_OUT: tensor})


DAMAGE = {
    "corrupt byte": (corrupt_byte, "has digest"),
    "wrong shape": (lambda w: replaced(w, w.tensors[W_OUT][:-1].clone()), "this model has"),
    "wrong dtype": (lambda w: replaced(w, w.tensors[W_OUT].double()), "this model has"),
    "digest of a held tensor of another kind": (
        lambda w: damaged(
            w, tensors=without(w, W_OUT), manifest=w.manifest | {W_OUT: w.manifest[HELD]}
        ),
        "this model has",
    ),
    "part of a module not sent": (lambda w: damaged(w, tensors=without(w, W_OUT)), "was not sent"),
    "part of a module not named": (
        lambda w: damaged(w, manifest={k: d for k, d in w.manifest.items() if k != W_IN}),
        "missing from the manifest",
    ),
    "unknown key": (
        lambda w: damaged(w, manifest=w.manifest | {f"{NIGHT}.w_in#9": "0" * 32}),
        "not in this model",
    ),
    "unnamed tensor": (
        lambda w: damaged(w, tensors=w.tensors | {"head": torch.zeros(2)}),
        "not in the manifest",
    ),
    "wrong probe": (
        lambda w: damaged(
            w, probe_logprobs_T=(w.probe_logprobs_T[0] + 0.01, *w.probe_logprobs_T[1:])
        ),
        "probe prompt differ",
    ),
    "probe not a number": (
        lambda w: damaged(w, probe_logprobs_T=(float("nan"), *w.probe_logprobs_T[1:])),
        "probe prompt differ",
    ),
    "short probe": (
        lambda w: damaged(w, probe_logprobs_T=w.probe_logprobs_T[1:]),
        "cannot be checked",
    ),
    "long probe": (lambda w: damaged(w, probe_T=PROBE * 10), "cannot be checked"),
}
"""Name -> (function that damages a valid push, text of the error)."""


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_push_is_refused(damage, worker, start, path, have):
    """The error is one line, the version is not held, and the previous states are intact."""
    good = weights_of(changed_model(path, 2), "student", 2, have)
    damage_push, message = DAMAGE[damage]
    with pytest.raises(RunError, match=message) as error:
        worker.load(damage_push(good))
    assert "student v2" in str(error.value) and "\n" not in str(error.value)
    assert worker.held()["student"] == 1
    with pytest.raises(RunError, match="not loaded here"):
        worker.sample(REQUESTS, "student", 2, SAMPLING)
    assert gap(changed_model(path, 1), worker, "student", 1) < 1e-4
    assert gap(start, worker, "teacher", 1) < 1e-4
    for tensor in damage_push(
        good
    ).tensors.values():  # no tensor of the refused version is in the cache
        unsent = Weights("student", 2, have | {W_OUT: digest(tensor)}, {})
        with pytest.raises(RunError, match=f"{W_OUT} was not sent and is not held here"):
            worker.load(unsent)


def test_a_write_that_loses_a_tensor_is_refused(worker, start, path, have, monkeypatch):
    """The digests in the model are compared after each write."""
    engine = worker.engine
    real = engine.write_memory
    with monkeypatch.context() as patch:
        patch.setattr(
            engine,
            "write_memory",
            lambda t: real({k: v for k, v in t.items() if not k.endswith("w_out#4")}),
        )
        with pytest.raises(RunError, match="differs from what was written"):
            worker.load(weights_of(changed_model(path, 2), "student", 2, have))
    assert gap(changed_model(path, 1), worker, "student", 1) < 1e-4
    assert gap(start, worker, "teacher", 1) < 1e-4


def test_a_valid_push_is_loaded_after_a_refused_one(worker, path, have):
    model = changed_model(path, 2)
    good = weights_of(model, "student", 2, have)
    with pytest.raises(RunError):
        worker.load(DAMAGE["wrong probe"][0](good))
    worker.load(good)
    assert worker.held()["student"] == 2 and gap(model, worker, "student", 2) < 1e-4


def test_a_push_may_be_a_delta_of_a_held_version(worker, path):
    """A delta of the student's previous version; the sender may overwrite its tensors then."""
    before = changed_model(path, 1)
    after = changed_model(path, 3)
    weights = weights_of(after, "student", 2, {k: digest(t) for k, t in tensors_of(before).items()})
    worker.load(weights)
    for tensor in weights.tensors.values():
        tensor.zero_()
    assert gap(checkpoints.load(path), worker, "teacher", 1) < 1e-4
    assert gap(after, worker, "student", 2) < 1e-4


def test_read_only_arrays_are_loaded_through_a_file(worker, path, have, monkeypatch):
    """Ray passes read-only numpy arrays; an engine with several processes reads a shared file."""
    model = changed_model(path, 4)
    weights = weights_of(model, "student", 2, have)
    arrays = {k: t.numpy() for k, t in weights.tensors.items()}
    for array in arrays.values():
        array.setflags(write=False)
    with monkeypatch.context() as patch:
        patch.setattr(worker.engine, "tensors_by_file", True)
        worker.load(damaged(weights, tensors=arrays))
        held = worker.engine.read_memory()
    assert {k: digest(t) for k, t in held.items()} == weights.manifest
    assert gap(model, worker, "student", 2) < 1e-4


@pytest.mark.slow
def test_a_push_is_loaded_on_every_tensor_parallel_rank(path, have):
    """Two worker processes: tensors are passed in a file, and both ranks report the digests."""
    from actors.rollout import RolloutWorker
    from tests.fakes.models import ENGINE

    worker = RolloutWorker(path, dtype="float32", engine=ENGINE, seed=0, tensor_parallel=2)
    try:
        assert {k: digest(t) for k, t in worker.states.tensors("base").items()} == have
        model = changed_model(path, 1)
        worker.load(weights_of(model, "student", 1, have))
        assert len(worker.engine.memory_digests([f"{NIGHT}.state"])) == 2
        assert gap(model, worker, "student", 1) < 1e-4
        assert gap(checkpoints.load(path), worker, "base", 0) < 1e-4
    finally:
        worker.close()
