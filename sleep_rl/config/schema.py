"""The frozen configuration of a run: every key with its default, meaning and allowed values.

Each key is declared once, by `key(default, doc, ...)`: here, in `method` (wake and sleep),
`objective`, `dreams`, `evaluation` and `tasks`. `loader` reads YAML and overrides and refuses
unknown keys; `validation` has the rules that involve several keys. The defaults are the paper's or
usual values; those of the demo's small model are in configs/toy.yaml.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sleep_rl.config.dreams import DreamConfig
from sleep_rl.config.engine_options import engine_options
from sleep_rl.config.evaluation import Baselines, Evaluate
from sleep_rl.config.method import Generation, Reading, Rehearsal, Replay, Sleep, Wake
from sleep_rl.config.objective import Checks, Imitation, Objective, RewardConfig
from sleep_rl.config.tasks import WORLD, TaskConfig, key
from sleep_rl.schedule import ScheduledConsolidation, most_experts, schedule

LOGIT_CHUNK = 1024
"""Tokens whose teacher and student logits are in a learner's memory at the same time. With a
vocabulary of 150,000 they take 1.2 GB in fp32; a GPU multiplies smaller matrices less well.
"""


def threads_on(cpus: float) -> int:
    """Return the threads of a worker that reserves `cpus` CPUs and has no GPU."""
    return max(1, int(cpus))


@dataclass(frozen=True)
class Run:
    """Name, folders, seed and checkpoints of a run."""

    name: str = key("world", "Name of the run; its folder is <run.dir>/<run.name>.")
    dir: str = key("runs", "Folder that holds the run folders.")
    cache: str = key("cache", "Folder for base models that are made on first use.")
    seed: int = key(0, "Seed of data, initialisation and sampling.", low=0, high=2**32 - 1)
    checkpoint_steps: int = key(
        100,
        "Optimizer steps of a consolidation between two checkpoints, rounded up to whole "
        "rounds; one more is written before its first step. 0: checkpoints between consolidations "
        "only.",
        low=0,
    )


@dataclass(frozen=True)
class Model:
    """The base model and its memory."""

    base: str | None = key(
        None,
        "Path or hub name of a dense Qwen3, Qwen2 or Llama checkpoint or of a sleep checkpoint; "
        "smollm2-135m-instruct comes with the extra cpu. null: the task's own small base; for "
        "documents smollm2-135m-instruct, without a GPU. world: for documents, the small base of "
        "task world, as a test bed.",
    )
    teachers: list = key(
        [],
        "Paths or hub names of other, smaller models with the same tokens. In night 0, "
        "before the first day, they are seeded into one expert of level 1.",
    )
    format: str = key(
        "auto",
        "Form of texts in natural language: the tokenizer's chat template, raw text for base models"
        " (Question: ... Answer: ...), or auto: chat where the tokenizer has a template. Tasks with"
        " a small base of their own have a fixed form.",
        choices=("auto", "chat", "raw"),
    )
    dtype: str = key(
        "bfloat16",
        "Data type of weights and activations. auto: bfloat16 on GPUs and on processors that "
        "multiply it fast, else float32.",
        choices=("float32", "bfloat16", "auto"),
    )
    chunks: list = key(
        [1],
        "Chunk lengths C(1..k) of the k memory levels in nights, fastest first, each a "
        "multiple of the one before. Every C(l) nights level l is consolidated into level "
        "l+1 and updated by equation 2.",
    )
    experts: int = key(
        5,
        "Experts preallocated per level and layer; a consolidation unlocks one of its receiver.",
        low=1,
    )
    d_low: int = key(64, "Rank of an expert: A in R^(d x d_low), B in R^(d_low x d).", low=1)
    top_k: int = key(
        5,
        "Experts that the router activates per token. Routing is sparse once more experts "
        "are unlocked.",
        low=1,
    )
    memory_layers: str | int = key(
        "all",
        "Layers with memory: all, or those from this number up, counted from 0. What the layers "
        "below compute never changes, so a learner computes it once per sequence of a night.",
        choices=("all",),
        low=0,
    )

    @property
    def first_layer(self) -> int:
        """The lowest layer with memory."""
        return 0 if self.memory_layers == "all" else int(self.memory_layers)

    @property
    def levels(self) -> int:
        """k, the number of memory levels."""
        return len(self.chunks)


@dataclass(frozen=True)
class Critics:
    """Workers that train isolated copies and let them answer."""

    workers: int = key(
        1,
        "Critic workers, each with a vLLM engine and a torch model; used with dream.rounds "
        "above 0. Without a GPU each has a thread on the cores of workers that are idle meanwhile.",
        low=1,
    )
    gpus: float = key(
        0.0, "GPUs per critic, or the share of one. 0: it runs on the CPU.", low=0, high=1
    )
    copies_per_pass: int = key(
        16,
        "Isolated copies that are trained in one forward pass and held by the engine at the"
        " same time.",
        low=1,
    )
    engine: dict = key({}, "Options of the critics' vLLM engines, over those of rollouts.engine.")


@dataclass(frozen=True)
class Rollouts:
    """Workers that sample."""

    workers: int = key(1, "Rollout workers, each with a vLLM engine.", low=1)
    cpus: float = key(
        1.0,
        "CPUs reserved per rollout worker; without a GPU it has a thread on each.",
        low=0,
    )
    gpus: float = key(
        0.0, "GPUs per rollout worker, or the share of one. 0: it runs on the CPU.", low=0
    )
    tensor_parallel: int = key(
        1, "Tensor-parallel size of an engine; equal to rollouts.gpus if either is above 1.", low=1
    )
    engine: dict = key(
        {},
        "Options of the vLLM engines, by vLLM's names. An unset option, or null, is left to"
        " vLLM; on the CPU, CPU_ENGINE (sleep_rl/config/engine_options.py) is added.",
    )


@dataclass(frozen=True)
class Learners:
    """Ranks that train."""

    world_size: int = key(1, "DeepSpeed ranks.", low=1)
    cpus: float = key(
        0.0,
        "CPUs reserved per rank. 0: it shares the node's cores with the rollout workers, "
        "which are idle meanwhile.",
        low=0,
    )
    gpus: float = key(
        0.0, "GPUs per rank, or the share of one. 0: it runs on the CPU.", low=0, high=1
    )
    threads: int = key(1, "OpenMP threads per rank on the CPU.", low=1)
    zero_stage: int = key(1, "DeepSpeed ZeRO stage.", choices=(0, 1, 2, 3))
    pass_tokens: int = key(
        2048,
        "Tokens per forward pass and rank, with padding. A longer sequence is a pass of its own.",
        low=1,
    )
    gradient_checkpointing: bool = key(
        False,
        "Keep only each layer's input for the backward pass, which computes the layers again: "
        "several times the tokens in a pass, for a third more computation.",
    )
    grad_clip: float = key(1.0, "Largest gradient norm.", above=0)


@dataclass(frozen=True)
class Cluster:
    """The backend of the workers, and deadlines."""

    backend: str = key(
        "ray",
        "Where workers run: on Ray, or in this process (for tests and debugging).",
        choices=("ray", "local"),
    )
    address: str | None = key(
        None, "Address of the Ray cluster. null: RAY_ADDRESS if set, else a new Ray on this node."
    )
    start_timeout_s: float = key(
        300.0, "Deadline for the start of all workers, in seconds.", above=0
    )
    call_timeout_s: float = key(600.0, "Deadline of a call to a worker, in seconds.", above=0)
    wait_for_nodes_s: float = key(
        0.0,
        "Seconds that a run waits at its start for missing nodes. 0: it fails at once if "
        "resources are missing.",
        low=0,
    )
    gpu_gb: float | None = key(
        None,
        "Memory of a GPU in GB, e.g. 80; a config that does not fit is refused. null: unknown.",
        above=0,
    )
    restarts: int = key(
        3,
        "Restarts per run of workers that died, missed a deadline or gave an invalid response.",
        low=0,
    )


@dataclass(frozen=True)
class Wandb:
    """Weights & Biases."""

    mode: str = key(
        "off",
        "W&B logging: off, offline (no key, no network) or online.",
        choices=("off", "offline", "online"),
    )
    project: str = key("sleep_rl", "W&B project.")
    group: str | None = key(
        None, "W&B group. null: none, or a common one for all runs of a `sleep-rl ablate`."
    )
    artifacts: bool = key(False, "Upload the memory after each night as an artifact.")


@dataclass(frozen=True)
class Config:
    """The whole configuration of a run, one section per field."""

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
    dream: DreamConfig = field(default_factory=DreamConfig)
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
    def own_base(self) -> bool:
        """Whether the model lives with a small base that the task trains."""
        return self.model.base in (None, WORLD)

    @property
    def gamma(self) -> float:
        """gamma of equation 4, with its default resolved."""
        if self.reward.gamma is not None:
            return self.reward.gamma
        return 0.0 if self.reward.semantic == "none" else 0.5

    @property
    def probe_tolerance(self) -> float:
        """checks.probe in nats, with its default resolved.

        In bfloat16 vLLM and transformers differ by rounding alone: with SmolLM2-135M on a CPU by
        0.4 for the untouched base, and by 0.2 to 0.5 over the pushes of two nights.
        """
        return self.checks.probe or {"float32": 1e-3, "bfloat16": 1.5}[self.model.dtype]

    @property
    def rollout_engine(self) -> dict:
        """Options of the rollout engines, with defaults."""
        return engine_options(self.rollouts.engine, self.rollouts.gpus)

    @property
    def critic_engine(self) -> dict:
        """Options of the critics' engines, with defaults."""
        return engine_options({**self.rollouts.engine, **self.critics.engine}, self.critics.gpus)

    @property
    def judge_engine(self) -> dict:
        """Options of a judge's engine, with defaults."""
        return engine_options(self.rollouts.engine, self.reward.gpus)

    @property
    def nights(self) -> int | None:
        """Days, and nights, with the default resolved; None: the task decides."""
        return self.task.days or self.task.section.days

    def days_key(self) -> str:
        """Return the key that decides the number of days."""
        of_task = {"documents": "task.documents.path", "custom": "task.custom.target"}
        return of_task.get(self.task.name, "task.days")

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
        """Return the largest number of unlocked experts of each level in such a life."""
        return most_experts(
            self.schedule(nights),
            self.model.levels,
            reset=self.sleep.reset,
            dreams=self.dream.rounds > 0,
        )
