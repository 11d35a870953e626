"""The dreaming student, and the expert of the dreaming policy."""

import pytest
import torch

from sleep_rl.contracts.records import STUDENT, TEACHER, TrainingRow
from sleep_rl.model.memory import ACTIVE, FRESH, LOCKED, PARTS, view_of


def test_the_dreaming_student_activates_one_more_expert_and_changes_no_weight(worker):
    learner = worker(kind="sparse")  # two of three ACTIVE experts per token, and a FRESH one
    before = {k: v.clone() for k, v in learner.model.state_dict().items()}
    seen = set()
    for seed in range(8):
        chosen = learner.activate_random_expert(seed)
        assert chosen.keys() == learner.levels.keys() and set(chosen.values()) <= {1, 2, 3}
        seen |= {(name, slot) for name, slot in chosen.items()}
        for name, level in learner.levels.items():
            slot = chosen[name]
            assert level.patch.state_S.tolist() == [
                *(FRESH if s == slot else v for s, v in enumerate(level.state.tolist()))
            ]
            x = torch.randn(20, 64)
            on = []
            for view in (TEACHER, STUDENT):
                with view_of(learner.model, view):
                    state = level.states()
                    on.append(
                        level.gates(torch.nn.functional.linear(x, level.router), state, True) > 0
                    )
            teacher, dreaming = on
            assert (
                bool(dreaming[:, slot].all())
                and bool((dreaming.sum(1) == 4).all())
                and bool((teacher.sum(1) == 3).all())
            )
        weights = learner.export("dreamer", seed + 1, {}, STUDENT)
        states = [t for key, t in weights.tensors.items() if key.endswith("state")]
        assert (
            all(t.tolist().count(FRESH) == 2 for t in states) and len(weights.probe_logprobs_T) == 3
        )
        learner.discard_night()
        assert learner.activate_random_expert(seed) == chosen
        learner.discard_night()
    assert len(seen) > len(learner.levels)
    assert all(torch.equal(v, before[k]) for k, v in learner.model.state_dict().items())
    assert worker().activate_random_expert(0) == {}  # no expert is unlocked


@pytest.mark.stack
def test_a_dream_is_reproduced_from_its_recorded_seeds(worker, rollout, sleep_checkpoint):
    from sleep_rl.contracts.records import Request, Sampling

    engine = rollout(sleep_checkpoint("qwen3", "sparser"))
    learner = worker(kind="sparser")
    versions = iter(range(1, 9))

    def dream(learner, expert_seed):
        """Return (experts, tokens) as `sleep_rl.dreaming.cycle.write` does."""
        experts = learner.activate_random_expert(expert_seed)
        version = next(versions)
        engine.load(learner.export("dreamer", version, {}, STUDENT))
        learner.discard_night()
        samples = engine.sample(
            [Request((5, 6), (7,), seed) for seed in (11, 12)], "dreamer", version, Sampling(24)
        )
        return experts, [sample.completion_T for sample in samples]

    dreams = {expert_seed: dream(learner, expert_seed) for expert_seed in (1, 4, 6)}
    experts = [str(chosen) for chosen, _ in dreams.values()]
    # the additional expert changes the tokens
    assert len(set(experts)) == 3 == len({str(tokens) for _, tokens in dreams.values()})
    # with another learner, from the recorded seed only
    assert dream(worker(kind="sparser"), 1) == dreams[1]


def test_the_policy_trains_its_newest_expert_further(worker):
    learner = worker()
    assert learner.open_night(1, slot="next_or_newest") == 1
    learner.sft_step([TrainingRow((5, 6), (7, 8, 1))], 0, 1, 1e-2)
    learner.commit_night()
    kept = [level.w_out[1].clone() for level in learner.levels.values()]
    assert learner.open_night(1, slot="reuse_newest") == 1  # although other slots are free
    assert [torch.equal(e.w_out, k) for e, k in zip(learner.module.plastic, kept, strict=True)] == [
        True
    ] * len(kept)
    # the given learning rate, not that of the baselines
    learner.sft_step([TrainingRow((5, 6), (7, 8, 1))], 0, 1, 0.0)
    assert all(
        torch.equal(e.w_out.detach(), k) for e, k in zip(learner.module.plastic, kept, strict=True)
    )


def test_rebase_adds_the_policys_expert_to_the_current_memory(worker):
    learner = worker()

    def night(token):
        learner.open_night(1)
        learner.sft_step([TrainingRow((5, 6), (token, 8, 1))], 0, 1, 1e-2)
        learner.commit_night()

    night(7)
    learner.save_state("self")
    night(20)  # the policy's, in slot 2
    learner.save_state("dreamer")
    expert = {
        name: [getattr(level, p)[2].clone() for p in PARTS]
        for name, level in learner.levels.items()
    }
    learner.load_state("self")
    night(30)  # the model's next night, also in slot 2
    learner.save_state("self")
    current = {k: v.clone() for k, v in learner.model.state_dict().items()}
    learner.rebase_policy_expert("dreamer")
    for name, level in learner.levels.items():
        assert level.state.tolist() == [LOCKED, ACTIVE, ACTIVE, ACTIVE, LOCKED]
        assert all(
            torch.equal(getattr(level, p)[3], e) for p, e in zip(PARTS, expert[name], strict=True)
        )
        assert all(torch.equal(getattr(level, p)[:3], current[f"{name}.{p}"][:3]) for p in PARTS)
    learner.load_state("self")
    assert all(torch.equal(v, current[k]) for k, v in learner.model.state_dict().items())
    learner.load_state("dreamer")
    assert learner.open_night(1, slot="reuse_newest") == 3  # the policy's expert is the newest
    learner.discard_night()
    learner.save_state("spare", of="self")
    learner.load_state("spare")
    assert all(torch.equal(v, current[k]) for k, v in learner.model.state_dict().items())
