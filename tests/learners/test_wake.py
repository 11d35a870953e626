"""Wake updates against equation 2, computed with loops."""

import torch

from sleep_rl.contracts.records import STUDENT, TEACHER
from sleep_rl.model import checkpoints
from sleep_rl.model.memory import BASE_SLOT, FRESH, PARTS, level_number, memory_levels
from tests.learners.twins import CONFIG, DOCUMENTS


def slow_wake(model, documents, lr):
    """Return level name -> sum over the chunk of eta f(theta; x_t) (equation 2), one document at a
    time.
    """
    levels = memory_levels(model)
    total = {
        n: [torch.zeros_like(getattr(v, p)[BASE_SLOT]) for p in PARTS] for n, v in levels.items()
    }
    for v in levels.values():
        v.set_slot_state(BASE_SLOT, FRESH)
    for document in documents:
        for v in levels.values():
            for part in PARTS:
                getattr(v, part).requires_grad_(True).grad = None
        logp = model(torch.tensor([document])).logits[0, :-1].log_softmax(-1)
        (-logp[torch.arange(len(document) - 1), torch.tensor(document[1:])].mean()).backward()
        for n, v in levels.items():
            for i, part in enumerate(PARTS):
                total[n][i] += lr * getattr(v, part).grad[BASE_SLOT]
    return total


def base_expert(learner, name, view=TEACHER):
    """Return a level's base expert (router row, A, B) of an export."""
    tensors = learner.export(view, 1, {}, view).tensors
    return [tensors[f"{name}.{part}#{BASE_SLOT}"] for part in PARTS]


def close(values, wanted):
    return all(torch.allclose(v, w, atol=1e-6) for v, w in zip(values, wanted, strict=True))


def test_each_level_is_updated_by_equation_2_at_the_end_of_its_chunk(worker):
    """Two levels with C = (1, 2): level 1 is updated every night, level 2 by the gradients of both
    days.
    """
    learner = worker(kind="two levels")
    names = {n: sorted(name for name in learner.levels if level_number(name) == n) for n in (1, 2)}
    start = {name: base_expert(learner, name) for name in learner.levels}
    first = slow_wake(checkpoints.load(learner.base), DOCUMENTS[:2], CONFIG.wake.lr)
    learner.wake(DOCUMENTS[:2])
    learner.open_night(1, due=(1,))
    for name in names[1]:
        want = [a - g for a, g in zip(start[name], first[name], strict=True)]
        # section 3 a: the stored memory is unchanged
        assert close(base_expert(learner, name), start[name]) and close(
            base_expert(learner, name, STUDENT), want
        )
    learner.commit_night()
    for name in names[1]:
        assert close(
            base_expert(learner, name),
            [a - g for a, g in zip(start[name], first[name], strict=True)],
        )
    for name in names[2]:
        assert close(base_expert(learner, name), start[name])
    model = checkpoints.load(learner.base)
    for name, level in memory_levels(
        model
    ).items():  # the point at which the second day's gradients are computed
        for part in PARTS:
            getattr(level, part).data.copy_(getattr(learner.levels[name], part))
        level.set_state(learner.levels[name].state)
    second = slow_wake(model, DOCUMENTS[2:], CONFIG.wake.lr)
    moved = {name: base_expert(learner, name) for name in names[1]}
    learner.wake(DOCUMENTS[2:])
    learner.open_night(2, due=(1, 2))
    learner.commit_night()
    for name in names[1]:
        assert close(
            base_expert(learner, name),
            [a - g for a, g in zip(moved[name], second[name], strict=True)],
        )
    for name in names[2]:
        both = [f + g for f, g in zip(first[name], second[name], strict=True)]
        assert close(
            base_expert(learner, name), [a - g for a, g in zip(start[name], both, strict=True)]
        )


def test_a_discarded_night_keeps_the_open_chunk(worker):
    learner = worker()
    learner.wake(DOCUMENTS[:2])
    held = learner.chunks.state()
    learner.open_night(1, due=(1,))
    learner.discard_night()
    assert (
        held
        and held.keys() == learner.chunks.state().keys()
        and all(
            torch.equal(v, w)
            for v, w in zip(held.values(), learner.chunks.state().values(), strict=True)
        )
    )
    learner.open_night(1, due=(1,))
    learner.commit_night()
    assert learner.chunks.state() == {}
