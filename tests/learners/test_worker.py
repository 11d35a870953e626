"""The learner on real DeepSpeed, in this process: what it computes against slow twins, and what it
must leave alone.
"""

import inspect
import os
import socket
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from sleep_rl.config.method import Wake
from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.contracts.records import HARD_TARGET, STUDENT, TEACHER, TrainingRow
from sleep_rl.contracts.roles import Learner
from sleep_rl.model import checkpoints
from sleep_rl.model.memory import (
    ACTIVE,
    BASE_SLOT,
    FRESH,
    LOCKED,
    PARTS,
    level_number,
    memory_levels,
    view_of,
)
from tests.configs import toy
from tests.conftest import make_base

CONFIG = toy(
    model={"experts": 4, "d_low": 16, "top_k": 4},
    sleep={"lr": 1e-2, "warmup": 0, "batch": 4},
    wake={"lr": 0.1},
    learners={"micro_batch": 2, "threads": 1},
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


def unlocked(learner, number):
    """Unlocked consolidation experts of a level."""
    names = [name for name in learner.levels if level_number(name) == number]
    return sum(state != LOCKED for state in learner.levels[names[0]].state.tolist()[1:])


@pytest.fixture(scope="module")
def worker(sleep_checkpoint):
    """config -> LearnerWorker on the untrained tiny sleep model; one process group for all."""
    from learners.worker import LearnerWorker

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    return lambda config=CONFIG, kind="locked": LearnerWorker(
        sleep_checkpoint("qwen3", kind), config, probe_T=(5, 6, 7, 8)
    )


def logprobs(model, view, prompt, completion):
    """[T, V] log-probabilities that predict the completion, one sequence at a time."""
    with view_of(model, view):
        logits = model(torch.tensor([prompt + completion])).logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def slow_l_ks(model, rows, alpha, cap=2.0, prompt_weight=CONFIG.objective.prompt_weight, others=()):
    """-J_KS of equation 6 with the mixture of equation 3, in the paper's indices: sequence by
    sequence, token by token; T is the smaller self or, where a row names it, one of `others`.
    """
    divergence, positions, policy, rewarded = 0.0, 0, 0.0, 0
    for row in rows:
        student = logprobs(model, STUDENT, row.prompt_T, row.completion_T)
        who = others[row.teacher - 1] if row.teacher else model
        teacher = logprobs(who, TEACHER, row.teacher_T or row.prompt_T, row.completion_T).detach()
        for t, token in enumerate(row.completion_T):
            share, power = (prompt_weight, 1.0) if t < row.x_length else (1.0, 1 / row.temperature)
            raised = teacher[t].exp() ** power
            p = raised / raised.sum()  # T at the row's temperature
            divergence = divergence + share * (p * (p.log() - student[t])).sum()
            positions += share
            if row.advantage is not None:
                weight = min(float((student[t, token].detach() - row.behaviour_T[t]).exp()), cap)
                policy = policy - weight * row.advantage * student[t, token]
                rewarded += 1
    return alpha * divergence / positions + (1 - alpha) * policy / rewarded


def test_a_learner_has_every_method_of_the_contract_with_its_parameters():
    from learners.worker import LearnerWorker

    for name in (name for name in dir(Learner) if not name.startswith("_")):
        wanted = inspect.signature(getattr(Learner, name))
        assert inspect.signature(getattr(LearnerWorker, name)) == wanted, name


def test_the_loss_and_its_gradient_equal_equation_6(worker):
    learner = worker()
    learner.open_night(1)
    for expert in learner.module.plastic:  # away from the start, where most gradients vanish
        torch.nn.init.normal_(expert.w_out, std=0.1)
    slow = slow_l_ks(learner.model, ROWS, CONFIG.objective.alpha)
    plastic = list(learner.module.plastic.parameters())
    want = torch.autograd.grad(slow, plastic)
    norm = torch.stack([g.norm() for g in want]).norm().item()
    metrics = learner.seed_step(ROWS, 0, 10).metrics
    assert metrics["loss"] == pytest.approx(slow.item(), abs=1e-5)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert metrics["tokens_trained"] == 12 and metrics["sequences"] == 4


def test_a_row_may_be_learned_from_the_teacher_at_another_temperature(worker):
    """On the answer only: x is drawn from the teacher's own distribution, and is to be drawn from
    it again.
    """
    learner = worker()
    learner.open_night(1)
    for expert in learner.module.plastic:
        torch.nn.init.normal_(expert.w_out, std=0.1)
    rows = [
        replace(row, temperature=temperature, x_length=1)
        for row, temperature in zip(ROWS, (0.5, 1.0, 0.25, 1.0), strict=True)
    ]
    slow = slow_l_ks(learner.model, rows, CONFIG.objective.alpha)
    plain = slow_l_ks(
        learner.model, [replace(row, temperature=1.0) for row in rows], CONFIG.objective.alpha
    )
    assert abs(slow.item() - plain.item()) > 1e-3
    norm = torch.stack(
        [g.norm() for g in torch.autograd.grad(slow, list(learner.module.plastic.parameters()))]
    ).norm()
    metrics = learner.seed_step(rows, 0, 10).metrics
    assert metrics["loss"] == pytest.approx(slow.item(), abs=1e-5)
    assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)


def test_rows_of_several_teachers_each_count_against_their_own(worker, tmp_path):
    learner = worker()
    paths = []
    for k, (family, size) in enumerate(
        (("llama", {"hidden_size": 32, "head_dim": 16}), ("qwen3", {"num_hidden_layers": 1}))
    ):
        base = make_base(family, str(tmp_path / f"{k}"), seed=k + 7, **size)
        paths.append(
            checkpoints.as_teacher(
                base, str(tmp_path / f"t{k}"), base, checkpoints.load_tokenizer(base, 300)
            )
        )
    learner.load_teachers(paths)
    learner.open_night(1)
    for expert in learner.module.plastic:
        torch.nn.init.normal_(expert.w_out, std=0.1)
    rows = [replace(row, teacher=k) for row, k in zip(ROWS, (2, 0, 1, 2), strict=True)]
    others = [checkpoints.load(path) for path in paths]
    slow = slow_l_ks(learner.model, rows, CONFIG.objective.alpha, others=others)
    assert abs(slow.item() - slow_l_ks(learner.model, ROWS, CONFIG.objective.alpha).item()) > 1e-2
    norm = torch.stack(
        [g.norm() for g in torch.autograd.grad(slow, list(learner.module.plastic.parameters()))]
    ).norm()
    metrics = learner.seed_step(rows, 0, 10).metrics
    assert metrics["loss"] == pytest.approx(slow.item(), abs=1e-5)
    assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
    learner.discard_night()
    learner.open_night(1)
    for expert in learner.module.plastic:
        torch.nn.init.normal_(expert.w_out, std=0.1)
    alone = [
        slow_l_ks(
            learner.model,
            [replace(row, advantage=0.0, behaviour_T=(0.0,) * len(row.completion_T))],
            1.0,
            prompt_weight=0.0,
            others=others,
        ).item()
        for row in rows
    ]
    result = learner.seed_step(rows, 0, 10)
    assert result.divergence_N == pytest.approx(alone, abs=1e-5)
    learner.unload_teachers()
    assert learner.module.other_teachers == () and not any(
        "other_teachers" in name for name in learner.module.state_dict()
    )


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_zero_stage_makes_the_same_first_steps_as_plain_adamw(stage, worker):
    learner = worker(replace(CONFIG, learners=replace(CONFIG.learners, zero_stage=stage)))
    for _ in range(2):  # the second night must start without the first one's optimizer state
        learner.open_night(1)
        start = plastic_of(learner)
        for step in range(3):
            learner.seed_step(ROWS, step, 10)
        done = plastic_of(learner)
        learner.discard_night()
    want = plain_adamw(worker(), 3)
    assert all(torch.equal(a, b) for a, b in zip(start, [p for p, _ in want], strict=True))
    for got, (_, expected) in zip(done, want, strict=True):
        assert torch.allclose(got, expected, atol=2e-5)


def plastic_of(learner):
    with learner.engine.whole():
        return [p.detach().clone() for p in learner.module.plastic.parameters()]


def plain_adamw(learner, steps):
    """(start, end) of each plastic parameter after AdamW steps on the slow loss, with gradient
    clipping.
    """
    learner.open_night(1)
    plastic = list(learner.module.plastic.parameters())
    start = [p.detach().clone() for p in plastic]
    optimizer = torch.optim.AdamW(plastic, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(steps):
        optimizer.zero_grad()
        slow_l_ks(learner.model, ROWS, CONFIG.objective.alpha).backward()
        torch.nn.utils.clip_grad_norm_(plastic, CONFIG.learners.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = CONFIG.sleep.lr * (10 - step) / 10
        optimizer.step()
    return list(zip(start, [p.detach() for p in plastic], strict=True))


def test_a_text_that_stands_for_a_teacher_counts_its_cross_entropy(worker):
    """All of T lies on the token: KL(T||S) is -log S(token), beside rows of a real teacher in the
    same batch.
    """
    learner = worker()
    learner.open_night(1)
    for expert in learner.module.plastic:
        torch.nn.init.normal_(expert.w_out, std=0.1)
    told = TrainingRow((5, 6), (33, 34, 35, 1), teacher=HARD_TARGET, x_length=2)
    real = [replace(ROWS[0], temperature=0.5), *ROWS[1:-1], replace(ROWS[-1], temperature=0.25)]
    rows = [real[0], told, *real[1:]]
    logp = logprobs(learner.model, STUDENT, told.prompt_T, told.completion_T)
    weight = [CONFIG.objective.prompt_weight] * 2 + [1.0] * 2
    mine = -sum(
        w * logp[t, token]
        for t, (token, w) in enumerate(zip(told.completion_T, weight, strict=True))
    )
    positions = sum(
        CONFIG.objective.prompt_weight if t < r.x_length else 1.0
        for r in ROWS
        for t in range(len(r.completion_T))
    )
    rest = slow_l_ks(learner.model, real, 1.0) * positions
    policy = slow_l_ks(learner.model, real, 0.0)
    slow = 0.5 * (rest + mine) / (positions + sum(weight)) + 0.5 * policy
    result = learner.seed_step(rows, 0, 10)
    assert result.metrics["loss"] == pytest.approx(slow.item(), abs=1e-5)
    alone = -(logp[2, 35] + logp[3, 1]).item() / 2
    assert result.divergence_N[1] == pytest.approx(alone, abs=1e-5)
    learner.discard_night()
    learner.open_night(1)
    only = learner.seed_step([told], 0, 10).metrics
    assert only["loss"] > 0 and only["divergence"] > 0


def test_what_wanders_lets_one_random_expert_through_besides_and_leaves_nothing(worker):
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
    assert (
        worker().activate_random_expert(0) == {}
    )  # before any expert is unlocked there is nothing to activate


@pytest.mark.stack
def test_the_recorded_experts_and_seed_of_a_dream_give_its_tokens_again(
    worker, rollout, sleep_checkpoint
):
    from sleep_rl.contracts.records import Request, Sampling

    engine, learner, versions = (
        rollout(sleep_checkpoint("qwen3", "sparser")),
        worker(kind="sparser"),
        iter(range(1, 9)),
    )

    def dream(learner, wander):
        """(experts, tokens) as `sleep_rl.dreaming.cycle.write` gets them."""
        experts, version = learner.activate_random_expert(wander), next(versions)
        engine.load(learner.export("dreamer", version, {}, STUDENT))
        learner.discard_night()
        samples = engine.sample(
            [Request((5, 6), (7,), seed) for seed in (11, 12)], "dreamer", version, Sampling(24)
        )
        return experts, [sample.completion_T for sample in samples]

    dreams = {wander: dream(learner, wander) for wander in (1, 4, 6)}
    experts = [str(chosen) for chosen, _ in dreams.values()]
    # whom a router also hears is heard
    assert len(set(experts)) == 3 == len({str(tokens) for _, tokens in dreams.values()})
    # another learner, later, from what was recorded alone
    assert dream(worker(kind="sparser"), 1) == dreams[1]


def test_the_policy_trains_its_own_expert_on(worker):
    learner = worker()
    assert learner.open_night(1, slot="next_or_newest") == 1
    learner.sft_step([TrainingRow((5, 6), (7, 8, 1))], 0, 1, 1e-2)
    learner.commit_night()
    kept = [level.w_out[1].clone() for level in learner.levels.values()]
    assert learner.open_night(1, slot="reuse_newest") == 1  # though others are free
    assert [torch.equal(e.w_out, k) for e, k in zip(learner.module.plastic, kept, strict=True)] == [
        True
    ] * len(kept)
    # its own learning rate, not that of the baselines
    learner.sft_step([TrainingRow((5, 6), (7, 8, 1))], 0, 1, 0.0)
    assert all(
        torch.equal(e.w_out.detach(), k) for e, k in zip(learner.module.plastic, kept, strict=True)
    )


def test_a_regraft_is_the_present_memory_with_the_policys_expert(worker):
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
    night(30)  # what the model learned since, in slot 2, too
    learner.save_state("self")
    own = {k: v.clone() for k, v in learner.model.state_dict().items()}
    learner.rebase_policy_expert("dreamer")
    for name, level in learner.levels.items():
        assert level.state.tolist() == [LOCKED, ACTIVE, ACTIVE, ACTIVE, LOCKED]
        assert all(
            torch.equal(getattr(level, p)[3], e) for p, e in zip(PARTS, expert[name], strict=True)
        )
        assert all(torch.equal(getattr(level, p)[:3], own[f"{name}.{p}"][:3]) for p in PARTS)
    learner.load_state("self")
    assert all(torch.equal(v, own[k]) for k, v in learner.model.state_dict().items())
    learner.load_state("dreamer")
    assert learner.open_night(1, slot="reuse_newest") == 3  # it is what the policy trains on
    learner.discard_night()
    learner.save_state("spare", of="self")
    learner.load_state("spare")
    assert all(torch.equal(v, own[k]) for k, v in learner.model.state_dict().items())


def test_a_night_changes_the_new_expert_and_its_router_row_and_nothing_else(worker):
    learner = worker(kind="dense")  # experts 1..3 ACTIVE, 4 FRESH: make room first
    for level in learner.levels.values():
        level.set_slot_state(4, LOCKED)
    before = {k: v.clone() for k, v in learner.model.state_dict().items()}
    assert learner.open_night(1) == 4
    for step in range(2):
        learner.seed_step(ROWS, step, 4)
    # (b) changes no stored weight
    assert all(torch.equal(v, before[k]) for k, v in learner.model.state_dict().items())
    learner.commit_night()
    for key, after in learner.model.state_dict().items():
        if ".memory." not in key:
            assert torch.equal(after, before[key]), key
        elif key.endswith("state"):
            assert after.tolist() == [LOCKED, ACTIVE, ACTIVE, ACTIVE, ACTIVE]
        else:
            assert torch.equal(after[:4], before[key][:4]) and not torch.equal(
                after[4], before[key][4]
            ), key


def test_the_student_starts_as_the_teacher_and_learning_rate_zero_changes_nothing(worker):
    config = replace(CONFIG, sleep=replace(CONFIG.sleep, lr=0.0), wake=Wake(lr=0.0))
    learner = worker(config)
    learner.wake(DOCUMENTS)
    learner.open_night(1, due=(1,))
    replay = [TrainingRow((5, 6), (7, 8, 1), replay=True)] * 4
    for step in range(2):
        metrics = learner.seed_step(replay, step, 4).metrics
        assert metrics["divergence_replay"] == pytest.approx(0.0, abs=1e-6)
        assert metrics["loss"] == pytest.approx(0.0, abs=1e-6)
    assert all(float(e.w_out.detach().abs().max()) == 0.0 for e in learner.module.plastic)


def slow_wake(model, documents, lr):
    """Equation 2 with plain loops: level name -> sum over the chunk of eta f(theta; x_t), one
    document at a time.
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


def own(learner, name, view=TEACHER):
    """A level's own weights (router, A, B) in a state, as an export carries them."""
    tensors = learner.export(view, 1, {}, view).tensors
    return [tensors[f"{name}.{part}#{BASE_SLOT}"] for part in PARTS]


def close(values, wanted):
    return all(torch.allclose(v, w, atol=1e-6) for v, w in zip(values, wanted, strict=True))


def test_each_level_moves_by_equation_2_when_its_chunk_ends(worker):
    """Two levels, C = (1, 2) days: level 1 moves every night, level 2 by the sum of both days'
    gradients.
    """
    learner = worker(kind="two levels")
    names = {n: sorted(name for name in learner.levels if level_number(name) == n) for n in (1, 2)}
    start = {name: own(learner, name) for name in learner.levels}
    first = slow_wake(checkpoints.load(learner.base), DOCUMENTS[:2], CONFIG.wake.lr)
    learner.wake(DOCUMENTS[:2])
    learner.open_night(1, due=(1,))
    for name in names[1]:
        want = [a - g for a, g in zip(start[name], first[name], strict=True)]
        # (a): not applied
        assert close(own(learner, name), start[name]) and close(own(learner, name, STUDENT), want)
    learner.commit_night()
    for name in names[1]:
        assert close(
            own(learner, name), [a - g for a, g in zip(start[name], first[name], strict=True)]
        )
    for name in names[2]:
        assert close(own(learner, name), start[name])
    model = checkpoints.load(learner.base)
    for name, level in memory_levels(model).items():  # what the second day's gradients are taken at
        for part in PARTS:
            getattr(level, part).data.copy_(getattr(learner.levels[name], part))
        level.set_state(learner.levels[name].state)
    second = slow_wake(model, DOCUMENTS[2:], CONFIG.wake.lr)
    moved = {name: own(learner, name) for name in names[1]}
    learner.wake(DOCUMENTS[2:])
    learner.open_night(2, due=(1, 2))
    learner.commit_night()
    for name in names[1]:
        assert close(
            own(learner, name), [a - g for a, g in zip(moved[name], second[name], strict=True)]
        )
    for name in names[2]:
        both = [f + g for f, g in zip(first[name], second[name], strict=True)]
        assert close(own(learner, name), [a - g for a, g in zip(start[name], both, strict=True)])


def test_a_night_that_is_not_kept_leaves_the_open_chunk(worker):
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


def test_the_sender_is_empty_in_the_student_and_begins_anew_after_the_night(worker):
    learner = worker(kind="two levels")
    for _ in range(2):
        learner.open_night(1)
        for expert in learner.module.plastic:
            torch.nn.init.normal_(expert.w_out, std=0.1)
        learner.commit_night()
    assert (unlocked(learner, 1), unlocked(learner, 2)) == (2, 0)
    assert learner.open_night(2) == 1
    for name, level in learner.levels.items():
        sender = level_number(name) == 1
        # the teacher
        assert level.state.tolist()[1:] == (
            [ACTIVE, ACTIVE, LOCKED, LOCKED] if sender else [LOCKED] * 4
        )
        assert level.patch.state_S.tolist()[1:] == (
            [LOCKED] * 4 if sender else [FRESH, LOCKED, LOCKED, LOCKED]
        )
    learner.seed_step(ROWS, 0, 4)
    learner.commit_night()
    assert (unlocked(learner, 1), unlocked(learner, 2)) == (0, 1)
    for name, level in learner.levels.items():
        if level_number(name) == 1:
            assert float(level.w_out[1:].abs().max()) == 0.0  # unlocked again they are the identity


@pytest.mark.parametrize(
    "on_full,choice,wanted",
    [
        ("merge", "next", [(1, 2), (2, 0), (3, 4)]),
        ("recycle_oldest", "next", [(1, 0), (2, 0), (3, 0)]),
        ("recycle_oldest", "next_or_newest", [(4, 0), (4, 0), (4, 0)]),
        ("error", "next_or_newest", [(4, 0), (4, 0), (4, 0)]),
        ("error", "reuse_newest", [(4, 0), (4, 0), (4, 0)]),
    ],
)
def test_a_full_level_makes_room_as_configured(on_full, choice, wanted, worker):
    """(slot written, slot taken over) of the nights after the level was full; 1 is the oldest
    expert. A merge frees a slot, which the next night takes.
    """
    learner = worker(replace(CONFIG, sleep=replace(CONFIG.sleep, on_full=on_full)))
    for slot in (1, 2, 3, 4):
        assert learner.open_night(1) == slot
        for expert in learner.module.plastic:
            torch.nn.init.normal_(expert.w_out, std=0.1)
        learner.commit_night()
    found = []
    for _ in range(3):
        name, level = next(iter(learner.levels.items()))
        before = level.w_out.detach().clone()
        slot = learner.open_night(1, slot=choice)
        student = learner.export(STUDENT, 1, {}, STUDENT).tensors
        gone = [
            s for s in range(1, 5) if level.state[s] != LOCKED and level.patch.state_S[s] == LOCKED
        ]
        found.append((slot, gone[0] if gone else 0))
        begun = student[f"{name}.w_out#{slot}"]
        recycled = on_full == "recycle_oldest" and choice == "next"
        assert torch.equal(begun, torch.zeros_like(begun) if recycled else before[slot])
        learner.commit_night()
    assert found == wanted


def test_an_export_is_a_delta_of_the_asked_state_with_its_probe(worker):
    learner = worker()
    full = learner.export(TEACHER, 1, {}, TEACHER)
    assert set(full.tensors) == set(full.manifest) and len(full.manifest) == 2 * (3 * 5 + 1)
    learner.open_night(1)
    # with B = 0 the first step moves B only, but whole modules are sent
    learner.seed_step(ROWS, 0, 4)
    delta = learner.export(STUDENT, 2, full.manifest, STUDENT)
    names = {key.split("memory.0.")[1] for key in delta.tensors}
    assert names == {"router#1", "w_in#1", "w_out#1", "state"}
    want = logprobs(learner.model, STUDENT, (5,), (6, 7, 8))[
        torch.arange(3), torch.tensor([6, 7, 8])
    ]
    assert torch.allclose(torch.tensor(delta.probe_logprobs_T), want, atol=1e-5)
    assert delta.probe_logprobs_T != full.probe_logprobs_T
    assert learner.export(TEACHER, 3, full.manifest, TEACHER).tensors == {}


def test_lives_are_kept_apart(worker):
    learner = worker()
    learner.save_state("start")
    learner.open_night(1)
    learner.sft_step(ROWS, 0, 4)
    learner.commit_night()
    learner.save_state("later")
    changed = learner.export(TEACHER, 1, {}, TEACHER).manifest
    learner.load_state("start")
    assert learner.export(TEACHER, 2, {}, TEACHER).manifest != changed
    learner.load_state("later")
    assert learner.export(TEACHER, 3, {}, TEACHER).manifest == changed


def test_fine_tuning_loss_is_the_mean_cross_entropy_of_the_completions(worker):
    learner = worker()
    learner.open_night(1)
    logp = [
        logprobs(learner.model, STUDENT, r.prompt_T, r.completion_T)[
            torch.arange(len(r.completion_T)), torch.tensor(r.completion_T)
        ]
        for r in ROWS
    ]
    assert learner.sft_step(ROWS, 0, 4)["loss"] == pytest.approx(
        -torch.cat(logp).mean().item(), abs=1e-5
    )


def test_a_loss_that_is_not_finite_is_one_line_and_nothing_is_applied(worker):
    learner = worker()
    before = learner.export(TEACHER, 1, {}, TEACHER).manifest
    learner.open_night(1)
    bad = [replace(ROWS[2], advantage=float("nan")), *ROWS[:3]]
    with pytest.raises(RunError, match="the loss is nan") as error:
        learner.seed_step(bad, 0, 4)
    assert "\n" not in str(error.value)
    learner.discard_night()
    assert learner.export(TEACHER, 2, {}, TEACHER).manifest == before


def test_more_nights_than_experts_is_refused_and_without_expansion_the_newest_is_trained_on(worker):
    learner = worker()
    for night in range(1, 5):
        assert learner.open_night(1) == night
        learner.commit_night()
    with pytest.raises(
        InputError, match=r"level 1: all 4 experts are in use and sleep.on_full is error"
    ):
        learner.open_night(1)
    learner = worker(replace(CONFIG, sleep=replace(CONFIG.sleep, expansion=False)))
    for _ in range(3):
        assert learner.open_night(1) == 1
        learner.commit_night()


def test_a_sparse_level_trains_the_second_half_as_it_will_be_used(worker):
    learner = worker()
    learner.open_night(1)
    states = []
    for step in range(4):
        learner.seed_step(ROWS, step, 4)
        states.append(int(next(iter(learner.levels.values())).patch.state_S[1]))
    assert states == [FRESH, FRESH, ACTIVE, ACTIVE]


@pytest.mark.parametrize(
    "stage, dtype",
    [
        (0, "float32"),
        (1, "float32"),
        (2, "float32"),
        (3, "float32"),
        (1, "bfloat16"),
        (3, "bfloat16"),
    ],
)
# before and behind the half, from which on the expert competes for the top-k
@pytest.mark.parametrize("cut", [2, 4])
def test_a_night_goes_on_from_what_was_saved_in_it(stage, dtype, cut, worker, tmp_path):
    """Like AdamW that was never interrupted: weights, moments and step count come back, bit for
    bit.
    """
    config = replace(
        CONFIG,
        learners=replace(CONFIG.learners, zero_stage=stage),
        model=replace(CONFIG.model, top_k=1, dtype=dtype),
    )
    whole = worker(config)
    whole.open_night(1)
    for step in range(6):
        if step == cut:
            whole.save_progress(str(tmp_path / "night"))
        whole.seed_step(ROWS, step, 6)
    other = worker(config)
    other.open_night(1)
    if cut == 4:
        other.seed_step(list(reversed(ROWS)), 0, 6)  # what it has come to itself is forgotten
    other.restore_progress(str(tmp_path / "night"), cut, 6)
    assert not other.module.cache or not other.module.cache.bytes
    for step in range(cut, 6):
        metrics = other.seed_step(ROWS, step, 6).metrics
    assert metrics["grad_norm"] > 0
    for mine, want in zip(plastic_of(other), plastic_of(whole), strict=True):
        assert torch.equal(mine, want)
    assert {
        name: level.patch.state_S.tolist() for name, level in other.levels.items() if level.patch
    } == {name: level.patch.state_S.tolist() for name, level in whole.levels.items() if level.patch}


def test_a_nights_state_that_is_damaged_or_anothers_is_one_line(worker, tmp_path):
    learner = worker()
    learner.open_night(1)
    learner.seed_step(ROWS, 0, 6)
    learner.save_progress(str(tmp_path / "night"))
    (tmp_path / "cut").write_bytes((tmp_path / "night").read_bytes()[:-5])
    (tmp_path / "empty").write_bytes(b"")
    for name in ("cut", "empty", "none"):
        with pytest.raises(RunError, match=f"{name}: the learner's state cannot be read"):
            learner.restore_progress(str(tmp_path / name), 1, 6)
    tensors = {"steps": torch.ones(()), "generator": torch.Generator().get_state()}
    save_file(tensors, tmp_path / "other")
    with pytest.raises(RunError, match="other: the night's state cannot be read"):
        learner.restore_progress(str(tmp_path / "other"), 1, 6)
