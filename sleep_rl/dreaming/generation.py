"""Step 1 of dreaming: the dreaming policy generates dreams about tasks, with C in context."""

from __future__ import annotations

import random
from statistics import fmean

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import STUDENT, DreamTask, Request, Sample
from sleep_rl.dreaming.dream import DREAMER, SELF, Dream, to_plain
from sleep_rl.session.context import RunContext
from sleep_rl.session.resumable import stage
from sleep_rl.text.codec import PromptCodec


@stage("dream/{night}/{number}/generate", switch="dream.rounds", optional=True)
def generate_dreams(
    run: RunContext, night: int, number: int, tasks: list[DreamTask], policy: bool
) -> list[dict]:
    """Sample dreams_per_task dreams ~ LM(.|C) per task.

    With dream.novelty each router activates a random expert as well, the same one for the i-th
    dream of all tasks. `policy`: the dreaming policy has a memory state of its own. Returns dreams
    as plain data.
    """
    options = run.config.dream
    learner = run.crew.learn
    rng = random.Random(f"dream {run.config.run.seed} {night} {number}")
    dreams: list[Dream] = []
    if policy:
        learner.save_state(SELF)
        if number == 1:  # include what the model learned since the last night
            learner.rebase_policy_expert(DREAMER)
        else:
            learner.load_state(DREAMER)
    title = f"night {night}: dreams, round {number}"
    with run.console.phase(title, total=options.dreams_per_task) as tick:
        for i in range(options.dreams_per_task):
            expert_seed = rng.getrandbits(31) if options.novelty else None
            experts = {}
            if expert_seed is not None:
                experts = learner.activate_random_expert(expert_seed)
            if i == 0 or options.novelty:
                run.crew.push(DREAMER, STUDENT)
            if expert_seed is not None:
                learner.discard_night()
            requests = _requests(run, tasks, rng)
            samples = run.sample(
                requests,
                DREAMER,
                run.task.max_dream_tokens,
                options.temperature,
                night=night,
                round=number,
            )
            for task, request, sample in zip(tasks, requests, samples, strict=True):
                dream = _dream(run.codec, task, i, request.seed, expert_seed, experts, sample)
                dreams.append(dream)
            tick(1, f"{len(dreams)} dreams")
    if policy:
        learner.load_state(SELF)
    return to_plain(dreams)


def _requests(run: RunContext, tasks: list[DreamTask], rng: random.Random) -> list[Request]:
    opener = run.codec.ids(run.task.dream_opener)
    return [Request(opener, run.codec.context(task.context), rng.getrandbits(31)) for task in tasks]


def _dream(
    codec: PromptCodec,
    task: DreamTask,
    number: int,
    seed: int,
    expert_seed: int | None,
    experts: dict[str, int],
    sample: Sample | Failure,
) -> Dream:
    if isinstance(sample, Failure):
        return Dream(task.id, number, seed, expert_seed, experts, (), "", 0.0, reason=sample.reason)
    return Dream(
        task.id,
        number,
        seed,
        expert_seed,
        experts,
        sample.completion_T,
        codec.text(sample.completion_T),
        fmean(sample.logprobs_T),
        reason="" if sample.finish_reason == "stop" else "no eos token",
    )
