"""The rollout worker: sampling from its states, also while requests are in flight."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from sleep_rl.contracts.errors import Failure, InputError, RunError
from sleep_rl.contracts.records import Request, Sampling
from sleep_rl.contracts.roles import Rollout
from sleep_rl.model import checkpoints
from tests.fakes.pushes import (
    REQUESTS,
    SAMPLING,
    changed_model,
    gap,
    hf_logprobs,
    weights_of,
)

pytestmark = pytest.mark.stack


def test_it_implements_rollout(worker):
    assert isinstance(worker, Rollout)
    held = worker.held()
    assert held["base"] == 0 < min(held["teacher"], held["student"])


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


def test_further_requests_are_refused_while_others_are_in_flight(worker, path):
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
    worker.load(weights_of(changed_model(path, 1), "newest", 1, have))
    worker.load(weights_of(changed_model(path, 5), "newest", 41, have))
    for name, version in (("newest", 41), ("teacher", 1), ("base", 0)):
        for sample in worker.sample(REQUESTS, name, version, SAMPLING):
            assert (
                sample.versions_T == (version,) * len(sample.completion_T)
                and sample.weights == name
            )
    with pytest.raises(RunError, match="newest v42 is not loaded"):
        worker.sample(REQUESTS, "newest", 42, SAMPLING)
    newer = worker.sample(REQUESTS, "newest", 1, SAMPLING)  # requested before version 41 was loaded
    assert {version for sample in newer for version in sample.versions_T} == {41}
    late = worker.load(weights_of(changed_model(path, 2), "newest", 40))
    # an older version changes nothing
    assert (late.version, late.tensors) == (41, 0) and worker.held()["newest"] == 41


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
