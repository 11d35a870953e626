"""The frozen configuration of a run: every key, its default, its meaning and what it allows.

Each key is declared once, by `key(default, doc, ...)`; `sleep_rl.config.loader` reads YAML and overrides
into it and rejects what is not declared. Rules that need several keys stand in `sleep_rl.config.validation`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sleep_rl.config.method import (
    Checks,
    Dream,
    Generation,
    Imitation,
    Objective,
    Reading,
    Rehearsal,
    Replay,
    RewardConfig,
    Sleep,
    Wake,
)
from sleep_rl.config.tasks import TaskConfig, key
from sleep_rl.schedule import ScheduledConsolidation, most_experts, schedule


CPU_ENGINE = {
    "enforce_eager": True,  # there are no CUDA graphs to capture
    "max_num_seqs": 256,
    "kv_cache_memory_bytes": 64 << 20,  # else vLLM takes a share of the memory of the machine
    "block_size": 32,  # vLLM's 128 leaves the prefix cache of short prompts unused
}
"""Engine options that only a CPU needs."""


def engine_options(options: dict, gpus: float) -> dict:
    """Return vLLM options for an engine on `gpus` GPUs; on a CPU those it needs are added."""
    return dict(options) if gpus else {**CPU_ENGINE, **options}


@dataclass(frozen=True)
class Run:
    name: str = key("world", "name of the run; its folder is <dir>/<name>")
    dir: str = key("runs", "folder that holds the run folders")
    cache: str = key("cache", "folder for base models that are trained on first use")
    seed: int = key(0, "seed of data, initialisation and sampling", low=0, high=2**32 - 1)
    checkpoint_steps: int = key(
        100,
        "steps of a night after which, at the end of a round, it "
        "writes a checkpoint to go on from; "
        "0: only between nights",
        low=0,
    )


@dataclass(frozen=True)
class Model:
    base: str | None = key(
        None,
        "path or hub name of a dense Qwen3, Qwen2 or Llama checkpoint, "
        "or of a sleep "
        "checkpoint; null: the task's own small base",
    )
    teachers: list = key(
        [],
        "paths or hub names of other, smaller models with the same "
        "vocabulary; before the first day "
        "they are seeded into level 1, which takes one of its experts",
    )
    dtype: str = key("bfloat16", "weights and activations", choices=("float32", "bfloat16"))
    chunks: list = key(
        [1],
        "C(1..k) of the k memory levels, fastest first, in nights: level l "
        "moves into level l+1 "
        "and its own weights are updated every C(l) nights; each a multiple "
        "of the one before",
    )
    experts: int = key(
        5, "consolidation experts preallocated per level and layer (one night unlocks one)", low=1
    )
    d_low: int = key(64, "rank of an expert: A in R^(d x d_low), B in R^(d_low x d)", low=1)
    top_k: int = key(
        5,
        "experts that the router lets through per token; below the number of "
        "unlocked experts the "
        "routing is sparse",
        low=1,
    )

    @property
    def levels(self) -> int:
        """k, the number of memory levels."""
        return len(self.chunks)


@dataclass(frozen=True)
class Critics:
    workers: int = key(
        1,
        "critic actors, one vLLM engine and one torch model each (with dream.rounds above 0)",
        low=1,
    )
    cpus: float = key(
        0.0,
        "CPUs per critic; 0 shares the node's cores with the workers that wait meanwhile",
        low=0,
    )
    gpus: float = key(0.0, "GPUs per critic", low=0, high=1)
    threads: int = key(1, "threads per critic on CPU", low=1)
    copies_per_pass: int = key(
        16, "isolated copies trained in one forward pass and held by the engine at once", low=1
    )
    engine: dict = key({}, "options of the critics' vLLM engines that win over rollouts.engine")


@dataclass(frozen=True)
class Rollouts:
    workers: int = key(1, "rollout actors, one vLLM engine each", low=1)
    cpus: float = key(1.0, "CPUs per rollout actor", low=0)
    gpus: float = key(0.0, "GPUs per rollout actor", low=0)
    tensor_parallel: int = key(
        1, "GPUs over which an engine splits its model; above 1 it has as many", low=1
    )
    threads: int = key(1, "OpenMP threads per rollout actor on CPU", low=1)
    engine: dict = key(
        {},
        "options of the vLLM engines, by vLLM's own names; null leaves an option to vLLM. On a CPU "
        "(gpus 0) those of CPU_ENGINE are added",
    )


@dataclass(frozen=True)
class Learners:
    world_size: int = key(1, "DeepSpeed ranks", low=1)
    cpus: float = key(
        0.0,
        "CPUs per rank; 0 shares the node's cores with the rollouts, which wait meanwhile",
        low=0,
    )
    gpus: float = key(0.0, "GPUs per rank", low=0, high=1)
    threads: int = key(
        1, "OpenMP threads per rank on CPU; more only where the cores are otherwise idle", low=1
    )
    zero_stage: int = key(1, "DeepSpeed ZeRO stage", choices=(0, 1, 2, 3))
    micro_batch: int = key(
        8, "sequences of one forward pass per rank; those of like length go together", low=1
    )
    recall_mib: int = key(
        512,
        "MiB of host memory per rank for what the teacher computed of its "
        "own sequences, which come "
        "again within a night; 0: computed anew (as with zero_stage "
        "3)",
        low=0,
    )
    grad_clip: float = key(1.0, "largest gradient norm", above=0)
    logit_chunk: int = key(1024, "tokens whose teacher and student logits live at once", low=1)


@dataclass(frozen=True)
class Cluster:
    backend: str = key(
        "ray",
        "where workers run: on Ray, or in this process (tests, debugging)",
        choices=("ray", "local"),
    )
    address: str | None = key(
        None, "Ray address to join; null: RAY_ADDRESS if set, else a Ray of our own on this node"
    )
    start_timeout_s: float = key(300.0, "seconds until every worker must answer", above=0)
    call_timeout_s: float = key(600.0, "seconds a call to a worker may take", above=0)
    report_after_s: float = key(
        60.0, "seconds of waiting for workers after which the console says for which", above=0
    )
    wait_for_nodes_s: float = key(
        0.0,
        "seconds that a run waits at its start for nodes that are still to "
        "come; 0: what is missing ends it "
        "at once",
        low=0,
    )
    gpu_gb: float | None = key(
        None,
        "memory of a GPU in GB, e.g. 80; what does not fit is refused; null: not known",
        above=0,
    )
    restarts: int = key(
        3,
        "times that workers may be started anew in a run, after they died, "
        "were late or gave rubbish",
        low=0,
    )


@dataclass(frozen=True)
class Evaluate:
    questions: int | None = key(
        None, "questions asked per column of the retention matrix; null: all", low=1
    )
    open_book: bool = key(
        True, "ask about each new day with its document in context, before the night"
    )
    max_drop: float | None = key(
        None,
        "largest loss of accuracy that a night may cost the known "
        "or an earlier day; a "
        "night that costs more is rolled back; null: none "
        "is",
        low=0,
        high=1,
    )
    examples: int = key(6, "answers per day kept for the report, before and after", low=0)


@dataclass(frozen=True)
class Baselines:
    run: list = key(
        ["sft", "joint"],
        "baselines trained in the same run, by the names of the modules in "
        "sleep_rl/driver/baselines: sft is plain sequential fine-tuning, joint trains on all days "
        "and the known at once (an upper bound)",
    )
    steps: dict = key({}, "optimizer steps by baseline; without an entry the baseline's own number")
    lr: float = key(5e-6, "peak learning rate of the baselines", low=0)


@dataclass(frozen=True)
class Wandb:
    mode: str = key(
        "off", "off, offline (no key, no network) or online", choices=("off", "offline", "online")
    )
    project: str = key("sleep_rl", "W&B project")
    group: str | None = key(
        None, "W&B group; null: none, or that of all runs of one `sleep-rl ablate`"
    )
    artifacts: bool = key(False, "also send the memory after each night, as an artifact")


@dataclass(frozen=True)
class Config:
    run: Run = field(default_factory=Run)
    task: TaskConfig = field(default_factory=TaskConfig)
    model: Model = field(default_factory=Model)
    wake: Wake = field(default_factory=Wake)
    sleep: Sleep = field(default_factory=Sleep)
    generation: Generation = field(default_factory=Generation)
    replay: Replay = field(default_factory=Replay)
    rehearsal: Rehearsal = field(default_factory=Rehearsal)
    reading: Reading = field(default_factory=Reading)
    imitation: Imitation = field(default_factory=Imitation)
    objective: Objective = field(default_factory=Objective)
    dream: Dream = field(default_factory=Dream)
    checks: Checks = field(default_factory=Checks)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rollouts: Rollouts = field(default_factory=Rollouts)
    learners: Learners = field(default_factory=Learners)
    critics: Critics = field(default_factory=Critics)
    cluster: Cluster = field(default_factory=Cluster)
    evaluate: Evaluate = field(default_factory=Evaluate)
    baselines: Baselines = field(default_factory=Baselines)
    wandb: Wandb = field(default_factory=Wandb)

    @property
    def gamma(self) -> float:
        """gamma of equation 4, as used."""
        given = self.reward.gamma
        return given if given is not None else 0.0 if self.reward.semantic == "none" else 0.5

    @property
    def probe_tolerance(self) -> float:
        """In nats, as used. One rounding of a bfloat16 logit between 8 and 16 is 0.06."""
        return self.checks.probe or {"float32": 1e-3, "bfloat16": 0.5}[self.model.dtype]

    @property
    def rollout_engine(self) -> dict:
        """Options of the rollout engines, as used."""
        return engine_options(self.rollouts.engine, self.rollouts.gpus)

    @property
    def critic_engine(self) -> dict:
        """Options of the critics' engines, as used."""
        return engine_options({**self.rollouts.engine, **self.critics.engine}, self.critics.gpus)

    @property
    def judge_engine(self) -> dict:
        """Options of a judge's engine, as used."""
        return engine_options(self.rollouts.engine, self.reward.gpus)

    @property
    def nights(self) -> int | None:
        """Days, and nights, that the task's section asks for; None: the task itself says."""
        return getattr(getattr(self.task, self.task.name), "days", None)

    def schedule(self, nights: int) -> list[ScheduledConsolidation]:
        """Return all consolidations of a life of `nights` nights, in order."""
        return schedule(
            self.model.chunks,
            nights,
            steps=self.sleep.steps,
            reset=self.sleep.reset,
            teachers=bool(self.model.teachers),
            endless=self.task.name == "documents",
        )

    def most_experts(self, nights: int) -> list[int]:
        """Return the largest number of experts that each level holds at once in such a life."""
        return most_experts(
            self.schedule(nights),
            self.model.levels,
            reset=self.sleep.reset,
            dreams=self.dream.rounds > 0,
        )
