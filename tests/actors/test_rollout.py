"""The rollout worker: loading pushed versions into a running engine, and sampling from them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from sleep_rl.contracts.errors import Failure, InputError, RunError
from sleep_rl.contracts.records import Request, Sampling, Weights
from sleep_rl.contracts.roles import Rollout
from sleep_rl.model import checkpoints
from sleep_rl.model.memory import memory_levels, tensors_of
from sleep_rl.model.tensor_digest import digest

pytestmark = pytest.mark.stack

PROBE = tuple(range(20, 60))
REQUESTS = [Request(tuple(range(n, n + 6)), tuple(range(40, 80)), seed=n) for n in range(5, 9)]
SAMPLING = Sampling(12, 1.0)
NIGHT = "model.layers.0.mlp.memory.0"


@torch.no_grad()
def hf_logprobs(model, ids_T) -> list[float]:
    logprobs_TV = model(torch.tensor([ids_T])).logits[0].log_softmax(-1)
    return logprobs_TV[range(len(ids_T) - 1), list(ids_T[1:])].tolist()


def changed_model(path: str, seed: int) -> torch.nn.Module:
    """Return the checkpoint with random weights in slot 4 of every layer, as after a night."""
    model = checkpoints.load(path)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for level in memory_levels(model).values():
            level.w_out[4].normal_(0, 0.5, generator=generator)
            level.router[4].normal_(0, 0.5, generator=generator)
    return model


def weights_of(model, name: str, version: int, have: dict[str, str] | None = None) -> Weights:
    """Return a learner's export: complete manifest, the tensors that `have` lacks, and a probe."""
    tensors = tensors_of(model)
    manifest = {k: digest(t) for k, t in tensors.items()}
    sent = {k: t.clone() for k, t in tensors.items() if (have or {}).get(k) != manifest[k]}
    return Weights(name, version, manifest, sent, PROBE, tuple(hf_logprobs(model, PROBE)))


def gap(model, worker, name: str, version: int) -> float:
    """Return the largest difference, in nats, between log-probabilities of samples and those of the
    model in transformers.
    """
    gaps = [0.0]
    for sample in worker.sample(REQUESTS, name, version, SAMPLING):
        ids_T = sample.context_T + sample.prompt_T + sample.completion_T
        expected = hf_logprobs(model, ids_T)[-len(sample.completion_T) :]
        gaps += [abs(a - b) for a, b in zip(sample.logprobs_T, expected, strict=True)]
    return max(gaps)


@pytest.fixture(scope="module")
def path(sleep_checkpoint) -> str:
    return sleep_checkpoint("qwen3", "dense")


@pytest.fixture(scope="module")
def start(path):
    """The checkpoint in transformers: the worker's state CHECKPOINT."""
    return checkpoints.load(path)


@pytest.fixture(scope="module")
def have(start) -> dict[str, str]:
    return {k: digest(t) for k, t in tensors_of(start).items()}


@pytest.fixture
def worker(rollout, path, start):
    """A worker with teacher v1 (the checkpoint) and student v1 (slot 4 changed), pushed as
    deltas.
    """
    worker = rollout(path)
    base = {k: digest(t) for k, t in tensors_of(start).items()}
    worker.load(weights_of(start, "teacher", 1, base))
    worker.load(weights_of(changed_model(path, 1), "student", 1, base))
    return worker


def test_it_implements_rollout(worker):
    assert isinstance(worker, Rollout)
    assert worker.held() == {"base": 0, "teacher": 1, "student": 1}


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


def test_equal_seeds_give_equal_samples(worker):
    """The same call returns the same tokens; other seeds give other tokens."""
    first, again = (worker.sample(REQUESTS, "student", 1, SAMPLING) for _ in range(2))
    assert [s.completion_T for s in first] == [s.completion_T for s in again]
    other = worker.sample(
        [Request(r.prompt_T, r.context_T, r.seed + 100) for r in REQUESTS], "student", 1, SAMPLING
    )
    assert all(a.completion_T != b.completion_T for a, b in zip(first, other, strict=True))
    assert [s.seed for s in first] == [r.seed for r in REQUESTS]


def test_seeds_work_with_more_prompts_than_one_step_takes(worker):
    """With chunked prefill vLLM would fail: it cannot rewind random generators on CPU."""
    requests = [Request(tuple(range(n, n + 100)), seed=n) for n in range(5, 25)]
    batch = worker.sample(requests, "teacher", 1, SAMPLING)
    [alone] = worker.sample(requests[13:14], "teacher", 1, SAMPLING)
    assert [len(s.completion_T) for s in batch] == [12] * 20
    assert alone.completion_T == batch[13].completion_T


def test_a_failed_engine_is_not_used_again(worker, monkeypatch):
    """Unfinished requests stay in vLLM; their outputs must not be returned for later ones."""

    def fails(*_, **__):
        raise RuntimeError("out of memory\nat line 3")

    engine = worker.engine
    with monkeypatch.context() as failed:
        failed.setattr(engine, "failure", "")  # restored at the end of the test
        with monkeypatch.context() as failing:
            failing.setattr(engine.llm.llm_engine, "step", fails)
            with pytest.raises(RunError, match=r"vLLM failed: out of memory at line 3$"):
                worker.sample(REQUESTS, "teacher", 1, SAMPLING)
        engine.llm.wait_for_completion(use_tqdm=False)
        with pytest.raises(RunError, match=r"vLLM failed earlier: out of memory at line 3$"):
            worker.sample(REQUESTS, "teacher", 1, SAMPLING)
    assert len(worker.sample(REQUESTS, "teacher", 1, SAMPLING)) == len(REQUESTS)


LONG = Sampling(60, 1.0)  # long enough that a batch is in flight after a few steps


def bring_in_flight(worker, model, name):
    """Load version 1 of a new state and bring requests to it in flight."""
    worker.load(weights_of(model, name, 1))
    worker.begin(REQUESTS, name, 1, LONG)
    for _ in range(8):
        assert worker.engine.step() == []


def test_requests_in_flight_continue_with_newer_weights(worker, path, have, monkeypatch):
    """Tokens before the load are of the old version and those after it of the new one, with keys
    and values that are recomputed with the new weights.
    """
    old = changed_model(path, 1)
    new = changed_model(path, 5)
    bring_in_flight(worker, old, "ahead")
    pushed = weights_of(new, "ahead", 2, have)
    with monkeypatch.context() as stepping:  # the pause holds no engine step
        stepping.setattr(worker.engine.llm.llm_engine, "step", lambda: pytest.fail("a step"))
        loaded = worker.load(pushed)
    assert loaded.version == 2 and loaded.probe_gap is None
    assert worker.more(0.0) is None
    samples = worker.more(60.0)
    assert [s.prompt_T for s in samples] == [r.prompt_T for r in REQUESTS]
    for sample in samples:
        assert set(sample.versions_T) == {1, 2} and list(sample.versions_T) == sorted(
            sample.versions_T
        )
        ids_T = sample.context_T + sample.prompt_T + sample.completion_T
        old_logprobs, new_logprobs = (
            hf_logprobs(model, ids_T)[-len(sample.completion_T) :] for model in (old, new)
        )
        for version, logprob, a, b in zip(
            sample.versions_T, sample.logprobs_T, old_logprobs, new_logprobs, strict=True
        ):
            assert logprob == pytest.approx(a if version == 1 else b, abs=1e-4)
    assert gap(new, worker, "ahead", 2) < 1e-4


def test_loading_another_state_finishes_the_requests_in_flight(worker, path, have):
    student = changed_model(path, 1)
    other = changed_model(path, 6)
    bring_in_flight(worker, student, "alone")
    loaded = worker.load(weights_of(other, "other", 1, have))
    assert loaded.probe_gap < 1e-4
    for sample in worker.more(0.0):  # they are finished
        assert set(sample.versions_T) == {1} and sample.weights == "alone"
        expected = hf_logprobs(student, sample.context_T + sample.prompt_T + sample.completion_T)[
            -len(sample.completion_T) :
        ]
        assert sample.logprobs_T == pytest.approx(expected, abs=1e-4)
    assert gap(other, worker, "other", 1) < 1e-4


def test_a_deferred_probe_is_checked_in_its_own_state(worker, path, have):
    """Another state may be loaded between a version and its probe."""
    new = changed_model(path, 5)
    other = changed_model(path, 6)
    bring_in_flight(worker, changed_model(path, 1), "waiting")
    assert worker.load(weights_of(new, "waiting", 2, have)).probe_gap is None
    assert worker.load(weights_of(other, "between", 1, have)).probe_gap < 1e-4
    samples = worker.more(0.0)
    assert {sample.versions_T[-1] for sample in samples} == {2}
    assert worker.held()["waiting"] == 2 and gap(new, worker, "waiting", 2) < 1e-4


def test_samples_of_a_version_that_fails_its_deferred_probe_are_dropped(worker, path, have):
    weights = weights_of(changed_model(path, 5), "failing", 2, have)
    bring_in_flight(worker, changed_model(path, 1), "failing")
    worker.load(replace(weights, probe_logprobs_T=tuple(p - 1.0 for p in weights.probe_logprobs_T)))
    with pytest.raises(RunError, match="failing v2: log-probabilities of the probe prompt differ"):
        worker.more(60.0)
    assert "failing" not in worker.held()
    with pytest.raises(RunError, match="no requests are in flight"):
        worker.more(1.0)
    assert len(worker.sample(REQUESTS, "teacher", 1, SAMPLING)) == len(REQUESTS)


def test_a_failed_load_is_undone_before_requests_in_flight_continue(
    worker, path, have, monkeypatch
):
    """The model contains wrong bytes when `load` raises; no token is sampled from them."""
    old = changed_model(path, 1)
    new = changed_model(path, 5)
    bring_in_flight(worker, old, "undone")
    write = worker.engine.write_memory
    with monkeypatch.context() as patch:
        patch.setattr(
            worker.engine,
            "write_memory",
            lambda tensors: write(
                {k: t + 1 if t.is_floating_point() else t for k, t in tensors.items()}
            ),
        )
        with pytest.raises(RunError, match="in the model differs from what was written"):
            worker.load(weights_of(new, "undone", 2, have))
    for sample in worker.more(60.0):
        assert set(sample.versions_T) == {1}
        expected = hf_logprobs(old, sample.context_T + sample.prompt_T + sample.completion_T)[
            -len(sample.completion_T) :
        ]
        assert sample.logprobs_T == pytest.approx(expected, abs=1e-4)


def test_a_second_batch_in_flight_is_refused(worker, path):
    bring_in_flight(worker, changed_model(path, 1), "first")
    with pytest.raises(RunError, match="rollout: 4 requests to first are in flight"):
        worker.begin(REQUESTS, "teacher", 1, SAMPLING)
    with pytest.raises(RunError, match="rollout: 4 requests to first are in flight"):
        worker.logprobs(REQUESTS, "teacher", 1)
    assert len(worker.more(60.0)) == len(REQUESTS)


def test_logprobs_are_those_of_the_prompt_behind_its_context(worker, path, have):
    model = changed_model(path, 3)
    worker.load(weights_of(model, "scored", 1, have))
    requests = [Request((7, 8, 9), (1, 5)), Request((11,), (1,)), Request((), (1,)), Request((1,))]
    first, second, *refused = worker.logprobs(requests, "scored", 1)
    assert first == pytest.approx(hf_logprobs(model, (1, 5, 7, 8, 9))[-3:], abs=1e-4)
    assert second == pytest.approx(hf_logprobs(model, (1, 11))[-1:], abs=1e-4)
    assert all(isinstance(result, Failure) for result in refused)
    assert worker.logprobs([], "scored", 1) == []
    with pytest.raises(RunError, match="scored v2 is not loaded"):
        worker.logprobs(requests, "scored", 2)


def test_logprobs_behind_a_cached_context_are_those_of_the_whole_prompt(worker, path, have):
    model = changed_model(path, 4)
    worker.load(weights_of(model, "scored", 1, have))
    context = tuple(random.Random(0).choices(range(5, 15), k=70))
    answer = tuple(random.Random(1).choices(range(5, 15), k=40))
    # the context alone, then also the scored tokens themselves are in the prefix cache
    worker.sample([Request((), context)], "scored", 1, SAMPLING)
    for scored in (answer, answer[:3], answer):
        [logprobs] = worker.logprobs([Request(scored, context)], "scored", 1)
        expected = hf_logprobs(model, context + scored)[-len(scored) :]
        assert logprobs == pytest.approx(expected, abs=1e-4)


def test_every_token_has_the_version_that_sampled_it(worker, path, have):
    worker.load(weights_of(changed_model(path, 5), "student", 41, have))
    for name, version in (("student", 41), ("teacher", 1), ("base", 0)):
        for sample in worker.sample(REQUESTS, name, version, SAMPLING):
            assert (
                sample.versions_T == (version,) * len(sample.completion_T)
                and sample.weights == name
            )
    with pytest.raises(RunError, match="student v42 is not loaded"):
        worker.sample(REQUESTS, "student", 42, SAMPLING)
    newer = worker.sample(
        REQUESTS, "student", 1, SAMPLING
    )  # requested before version 41 was loaded
    assert {version for sample in newer for version in sample.versions_T} == {41}
    late = worker.load(weights_of(changed_model(path, 2), "student", 40))
    # an older version changes nothing
    assert (late.version, late.tensors) == (41, 0) and worker.held()["student"] == 41


def test_invalid_requests_are_failures_and_do_not_affect_others(worker):
    good = REQUESTS[0]
    requests = [
        Request((5,) * 128),
        good,
        Request(()),
        Request((5,), (6,) * 127),
        Request((300,)),
        Request((-1,)),
        good,
    ]
    results = worker.sample(requests, "teacher", 1, SAMPLING)
    # the same request twice in a batch: kernels may differ in the last bit
    twins = results[1], results[6]
    assert twins[0].completion_T == twins[1].completion_T and len(twins[0].completion_T) == 12
    assert twins[0].logprobs_T == pytest.approx(twins[1].logprobs_T, abs=1e-5)
    reasons = [r.reason for r in results if isinstance(r, Failure)]
    assert [
        "max_model_len" in reasons[0],
        "empty" in reasons[1],
        "max_model_len" in reasons[2],
    ] == [True] * 3
    assert "300" in reasons[3] and "-1" in reasons[4] and len(reasons) == 5
    assert worker.sample([], "teacher", 1, SAMPLING) == []
    assert all(isinstance(r, Failure) for r in worker.sample([Request(())], "teacher", 1, SAMPLING))
    with pytest.raises(InputError):
        worker.sample([good], "teacher", 1, Sampling(0))


def test_completions_end_at_stop_token_max_tokens_or_max_model_len(worker):
    """The stop token is the last one; max_tokens is reduced to max_model_len; the checkpoint's own
    eos does not stop.
    """
    [unstopped] = worker.sample([Request(tuple(range(5, 10)))], "teacher", 1, Sampling(30, 0.0))
    assert (unstopped.finish_reason, len(unstopped.completion_T)) == ("length", 30)
    stop = unstopped.completion_T[7]
    often = worker.sample(
        [Request(tuple(range(5, 10)), seed=i) for i in range(8)],
        "teacher",
        1,
        Sampling(6, 1.0, min_p=1.0),
    )
    # min_p=1 leaves only the most likely token, for every seed
    assert {s.completion_T for s in often} == {unstopped.completion_T[:6]}
    [stopped] = worker.sample(
        [Request(tuple(range(5, 10)))], "teacher", 1, Sampling(30, 0.0, (stop,))
    )
    end = unstopped.completion_T.index(stop) + 1
    assert stopped.finish_reason == "stop" and stopped.completion_T == unstopped.completion_T[:end]
    assert len(stopped.logprobs_T) == end
    [cut] = worker.sample([Request((5,) * 120)], "teacher", 1, Sampling(30, 0.0))
    assert (cut.finish_reason, len(cut.completion_T)) == ("length", 8)


def test_completions_end_with_a_stop_string(path):
    """It is kept, with its tokens and their log-probabilities."""
    from actors.rollout import RolloutWorker
    from tests.fakes.models import ENGINE

    options = {**ENGINE, "skip_tokenizer_init": False}
    worker = RolloutWorker(path, dtype="float32", engine=options, seed=0)
    tokenizer = checkpoints.load_tokenizer(path, 320)
    request = Request(tuple(range(5, 10)))
    [whole] = worker.sample([request], "base", 0, Sampling(20, 0.0))
    words = [tokenizer.decode([token]).strip() for token in whole.completion_T]
    at = next(n for n, word in enumerate(words) if n and word.isascii() and word not in words[:n])
    [stopped] = worker.sample([request], "base", 0, Sampling(20, 0.0, stop=(words[at],)))
    assert words[at] and stopped.finish_reason == "stop"
    assert stopped.completion_T == whole.completion_T[: at + 1]
    assert stopped.logprobs_T == pytest.approx(whole.logprobs_T[: at + 1], abs=1e-5)
    worker.close()


def test_stop_strings_need_a_tokenizer(worker):
    with pytest.raises(InputError, match=r"tokenizer is needed for stop strings \(task\.stop\)"):
        worker.sample([Request((5, 6))], "teacher", 1, Sampling(5, 0.0, stop=("x",)))
    assert len(worker.sample([Request((5, 6))], "teacher", 1, Sampling(5, 0.0))) == 1


def test_context_and_prompt_are_one_sequence(worker):
    """The engine reads context_T + prompt_T, without a further bos."""
    context = tuple(range(30, 60))
    prompt = tuple(range(5, 9))
    [split] = worker.sample([Request(prompt, context)], "teacher", 1, Sampling(8, 0.0))
    [whole] = worker.sample([Request(context + prompt)], "teacher", 1, Sampling(8, 0.0))
    assert split.completion_T == whole.completion_T
    assert (split.context_T, split.prompt_T) == (context, prompt)


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
