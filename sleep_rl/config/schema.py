"""The frozen configuration of a run: every key, its default, its meaning and what it allows.

Each key is declared once, by `key(default, doc, ...)`; `sleep_rl.config.loader` reads YAML and overrides
into it and rejects what is not declared. Rules that need several keys stand in `sleep_rl.config.validation`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sleep_rl.config.tasks import TaskConfig, key


@dataclass(frozen=True)
class Run:
    name: str = key("world", "name of the run; its folder is <dir>/<name>")
    dir: str = key("runs", "folder that holds the run folders")
    cache: str = key("cache", "folder for base models that are trained on first use")
    seed: int = key(0, "seed of data, initialisation and sampling", low=0, high=2**32 - 1)


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
    dtype: str = key("float32", "weights and activations", choices=("float32", "bfloat16"))
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
class Wake:
    lr: float = key(
        1e-3,
        "eta of equation 2; a level's gradients are summed over its chunk, one "
        "per document; 0 switches "
        "wake updates off",
        low=0,
    )


@dataclass(frozen=True)
class Sleep:
    steps: int = key(
        600,
        "optimizer steps of a consolidation; a level's takes as many for each "
        "that came into it since it "
        "last moved",
        low=1,
    )
    steps_per_round: int = key(
        20, "steps between two pushes of the student, sampled for at once", low=1
    )
    lag: int = key(
        0, "versions by which the rollouts may run ahead of the learner; 0: they take turns", low=0
    )
    checkpoint_steps: int = key(
        300,
        "steps of a night after which, at the end of a round, it "
        "writes a checkpoint to go on from; "
        "0: only between nights",
        low=0,
    )
    max_gap: float = key(
        1.0,
        "largest mean log-probability difference between sampler and "
        "learner, at the first step "
        "behind a push, nats per token; a larger one ends the run",
        above=0,
    )
    batch: int = key(40, "sequences per optimizer step, over all learner ranks", low=1)
    replay: float = key(
        0.5, "share of sequences written without a document (self-replay)", low=0, high=1
    )
    rehearse: float = key(
        0.5,
        "share of self-replay that answers the prompts which the teacher "
        "wrote in past nights; the "
        "rest is written from nothing",
        low=0,
        high=1,
    )
    rehearse_written: int = key(
        1000, "answers to such prompts that the teacher writes per night", low=1
    )
    rehearse_prompts: int = key(
        500, "prompts kept per night: those that were written most often", low=1
    )
    rehearse_free: int = key(
        0,
        "the same for prompts that were written without a document: what "
        "was known long ago is then "
        "rehearsed, too, where the student lacks it",
        low=0,
    )
    rehearse_confidence: float = key(
        0.0,
        "a prompt is not kept, and an answer to one left out, "
        "where the teacher gave its answer "
        "less than this probability; 0: none is",
        low=0,
        high=1,
    )
    rehearse_temperature: float = key(
        1.0,
        "temperature of the teacher where it answers such "
        "prompts, both to sample the answers "
        "and to learn from them; and of what is learned of "
        "its answers about texts of its own "
        "(reading_written). Below 1 what it is fairly sure of "
        "becomes surer again, which many "
        "consolidations would wear down",
        low=0.01,
    )
    rehearse_by: str = key(
        "divergence",
        "which prompts: those where the student still differs "
        "from the teacher (at "
        "rehearse_temperature), or all alike",
        choices=("divergence", "uniform"),
    )
    reading: int = key(
        4,
        "rows per step beside the batch on which the student has the document, "
        "too: it goes on reading",
        low=0,
    )
    reading_written: int = key(
        0,
        "texts that the teacher begins from nothing per night for "
        "these rows; those that are documents, "
        "and what it writes about them, are read instead of the day's, "
        "which it comes to know by heart",
        low=0,
    )
    on_policy: float = key(
        1.0,
        "lambda of equation 3: share of divergence rows on student samples; equation 6 has 1",
        low=0,
        high=1,
    )
    alpha: float = key(
        0.5,
        "weight of the divergence in equation 6; 1 - alpha weighs the "
        "imitation reward; 1 switches "
        "imitation off",
        low=0,
        high=1,
    )
    divergence: str = key(
        "forward_kl",
        "Div(T||S) over the full vocabulary",
        choices=("forward_kl", "reverse_kl", "jsd"),
    )
    beta: float = key(0.5, "beta of the generalised JSD, inside (0, 1)", low=0, high=1)
    prompt_weight: float = key(
        0.2,
        "weight of the divergence on a written sequence's own prompt "
        "x (1 on its answer y); "
        "above 0, so that what was written can be written "
        "again",
        low=0,
        high=1,
    )
    group: int = key(4, "student completions per prefix (group-relative advantage)", low=2)
    prefix_min: float = key(
        0.1, "shortest imitation prefix, as a share of the teacher's sequence", low=0, high=1
    )
    prefix_max: float = key(
        0.7, "longest imitation prefix, as a share of the teacher's sequence", low=0, high=1
    )
    scale_advantage: bool = key(
        True, "divide the advantage by the group's standard deviation (GRPO)"
    )
    is_cap: float = key(2.0, "cap of the truncated importance weight of stale samples", above=0)
    temperature: float = key(
        1.0,
        "sampling temperature of the teacher's writing, rehearsed "
        "answers aside; the student samples "
        "with 1",
        above=0,
    )
    min_p: float = key(
        0.0,
        "writing about a document: tokens less likely than this share of the "
        "likeliest are not "
        "sampled; a small model copies more faithfully so (from nothing it "
        "is to write all sorts)",
        low=0,
        high=1,
    )
    confidence: float = key(
        0.0,
        "what the teacher wrote about a document is left out where it "
        "gave its own answer y less "
        "than this probability; 0: nothing is",
        low=0,
        high=1,
    )
    written: int = key(60, "sequences that the teacher writes per document and night", low=1)
    replay_written: int = key(
        2000, "sequences that the teacher writes per night without any document", low=1
    )
    lr: float = key(4e-3, "peak learning rate of the new expert", low=0)
    warmup: int = key(10, "steps of linear warm-up; afterwards linear decay to zero", low=0)
    grad_clip: float = key(1.0, "largest gradient norm", above=0)
    logit_chunk: int = key(1024, "tokens whose teacher and student logits live at once", low=1)
    on_full: str = key(
        "error",
        "when every expert of the receiving level is in use: refuse, "
        "merge the two oldest and the "
        "night into one, or give up the "
        "oldest",
        choices=("error", "merge", "recycle_oldest"),
    )
    expansion: bool = key(True, "unlock a new expert each night; false trains the newest one on")
    reset: bool = key(
        True,
        "drop the sender after its consolidation: documents and cached "
        "context, or a level's experts",
    )


@dataclass(frozen=True)
class Dream:
    rounds: int = key(
        0,
        "rounds of dreaming behind each night (paper.md section 4); 0 switches dreaming off",
        low=0,
    )
    tasks: int = key(12, "tasks (C, tau) that are dreamed about in a round", low=1)
    curriculum: str = key(
        "weakest",
        "which: drawn in proportion to what the retention matrix "
        "lacks (the newest day, not "
        "yet in it, lacks everything), of the newest day only, or "
        "all alike",
        choices=("weakest", "newest", "uniform"),
    )
    m: int = key(15, "dreams written per task", low=1)
    k: int = key(4, "dreams of a task that are kept for their importance", low=0)
    b: int = key(1, "dreams of a task that are kept at random beside them", low=0)
    importance: str = key(
        "inner",
        "omega: inner product of a dream's gradient with that of C's "
        "loss, its norm, or the inner "
        "product less what was chosen already (GREATS); random: no "
        "selection",
        choices=("inner", "norm", "greedy", "random"),
    )
    novelty: bool = key(
        True,
        "each router also activates one random expert while dreams are "
        "written; seen only where "
        "model.top_k is below the number of unlocked experts",
    )
    temperature: float = key(1.0, "sampling temperature of dreams", above=0)
    inner_lr: float = key(1e-3, "peak learning rate of an isolated copy", above=0)
    inner_epochs: int = key(10, "passes of an isolated copy over its dream's texts", low=1)
    inner_rank: int = key(32, "LoRA rank of an isolated copy", choices=(8, 16, 32, 64, 128, 256))
    inner_alpha: float = key(64, "LoRA alpha of an isolated copy", above=0)
    seeds: int = key(
        3,
        "training seeds whose mean tau is rewarded; one more is trained that the reward never sees",
        low=1,
    )
    margin: float = key(
        0.0, "by how much that mean must beat the un-updated model's tau", low=0, high=1
    )
    accept: str = key(
        "all_positive",
        "rewarded dreams that are learned: all, or the best one of each task",
        choices=("all_positive", "best_of_k"),
    )
    mstep_init: str = key(
        "previous",
        "where each round's dreaming policy starts: the last round's, or the model itself",
        choices=("previous", "base"),
    )
    policy_lr: float = key(4e-3, "peak learning rate of the dreaming policy's expert", low=0)
    policy_epochs: int = key(
        2,
        "passes of the policy over the accepted dreams; 0: dreams are always the model's own",
        low=0,
    )
    policy_batch: int = key(10, "dreams per optimizer step of the policy", low=1)
    steps: int = key(
        200, "optimizer steps in which the model itself learns the night's accepted dreams", low=1
    )
    replay: float = key(0.5, "share of self-replay beside them", low=0, high=1)


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
    together: int = key(
        16, "isolated copies trained in one forward pass and held by the engine at once", low=1
    )
    engine: dict = key({}, "options of the critics' vLLM engines that win over rollouts.engine")


@dataclass(frozen=True)
class RewardConfig:
    gamma: float | None = key(
        None,
        "weight of the semantic reward in equation 4; null: 0.5 with a reward model, else 0",
        low=0,
        high=1,
    )
    z0: float = key(
        0.5,
        "equation 5 cut-off: below 1 a share of the longer sequence, from 1 on a token count",
        above=0,
    )
    semantic: str = key(
        "none",
        "frozen reward model, or a class of your own",
        choices=("none", "encoder", "judge", "custom"),
    )
    target: str | None = key(
        None,
        "custom: module:Class or path/to/file.py:Class, which every "
        "node can import; its `score` takes "
        "a list of (student's text, teacher's text) and returns a "
        "number from 0 to 1 for each",
    )
    options: dict = key({}, "custom: keyword arguments of that class")
    model: str | None = key(
        None, "path or hub name of the reward model; null: the base model itself"
    )
    threshold: float = key(
        0.9, "encoder: least cosine similarity that counts as the same meaning", low=-1, high=1
    )
    template: str = key(
        "First: {student}\nSecond: {teacher}\nSame meaning (yes or no):",
        "judge: the prompt, with {student} and {teacher}; yes or no is read from the next token",
    )
    timeout_s: float = key(
        30.0, "seconds a reward call may take; a late one is a failed sample", above=0
    )
    workers: int = key(1, "reward actors (used with a semantic reward)", low=1)
    cpus: float = key(0.0, "CPUs per reward actor; 0 shares the node's cores", low=0)
    gpus: float = key(0.0, "GPUs per reward actor", low=0)


@dataclass(frozen=True)
class Rollouts:
    workers: int = key(2, "rollout actors, one vLLM engine each", low=1)
    cpus: float = key(1.0, "CPUs per rollout actor", low=0)
    gpus: float = key(
        0.0, "GPUs per rollout actor (= tensor parallel size of its engine when above 1)", low=0
    )
    threads: int = key(1, "OpenMP threads per rollout actor on CPU", low=1)
    probe_tolerance: float | None = key(
        None,
        "largest log-probability difference on the probe "
        "prompt after a push, "
        "nats; null: 1e-3 in float32, 0.5 in "
        "bfloat16",
        above=0,
    )
    engine: dict = key(
        {
            "max_model_len": 256,
            "max_num_seqs": 256,
            "kv_cache_memory_bytes": 67108864,
            "block_size": 32,
            "enforce_eager": True,
        },
        "options handed to vLLM as they are",
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
        40, "sequences of one forward pass per rank; those of like length go together", low=1
    )
    recall_mib: int = key(
        512,
        "MiB of host memory per rank for what the teacher computed of its "
        "own sequences, which come "
        "again within a night; 0: computed anew (as with zero_stage "
        "3)",
        low=0,
    )


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
    watch_s: float = key(
        60.0, "seconds of waiting for workers after which the console says for which", above=0
    )
    wait_s: float = key(
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
    completions: int = key(6, "answers per day kept for the report, before and after", low=0)


@dataclass(frozen=True)
class Baselines:
    sft: bool = key(True, "plain sequential fine-tuning of the same expert on the same days")
    joint: bool = key(True, "upper bound: one expert trained on all days and the known at once")
    lr: float = key(4e-3, "peak learning rate of both", low=0)
    sft_steps: int = key(200, "optimizer steps of plain fine-tuning, per day", low=1)
    joint_steps: int = key(400, "optimizer steps of the joint bound", low=1)


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
    dream: Dream = field(default_factory=Dream)
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
        return self.rollouts.probe_tolerance or {"float32": 1e-3, "bfloat16": 0.5}[self.model.dtype]

    @property
    def nights(self) -> int:
        return getattr(self.task, self.task.name).days

    @property
    def consolidations(self) -> list[tuple[int, int]]:
        """(night, sender) of every consolidation of the life, in order; sender 0 is the context
        window.

        Slow to fast, so that a receiver is emptied before it receives; the slowest level sends
        nothing.
        """
        held, out = [0] * (self.model.levels + 1), []
        if self.model.teachers:  # in night 0 they stand where later the context window does
            out.append((0, 0))
            held[1] += 1
        for night in range(1, self.nights + 1):
            for sender in range(self.model.levels - 1, -1, -1):
                due = sender == 0 or (
                    night % self.model.chunks[sender - 1] == 0 and held[sender] > 0
                )
                if due:
                    out.append((night, sender))
                    held[sender + 1] += 1
                    held[sender] = 0 if self.sleep.reset else held[sender]
        return out

    def steps(self, night: int, sender: int) -> int:
        """Optimizer steps of a consolidation: sleep.steps for each one whose knowledge moves on
        with it, which are those into the sender since it sent last (the context window counts as
        one).
        """
        came = [0] * (self.model.levels + 1)
        for n, level in self.consolidations:
            if (n, level) == (night, sender):
                break
            came[level + 1] += 1
            came[level] = 0
        return self.sleep.steps * max(came[sender], 1)

    @property
    def most_experts(self) -> list[int]:
        """The most experts that each level holds at once, if every consolidation unlocks one, and
        so do the night's dreams (in level 1).
        """
        held, most = [0] * (self.model.levels + 1), [0] * (self.model.levels + 1)
        for night, sender in self.consolidations:
            held[sender + 1] += 1 + (sender == 0 and night > 0 and self.dream.rounds > 0)
            most[sender + 1] = max(most[sender + 1], held[sender + 1])
            held[sender] = 0 if self.sleep.reset else held[sender]
        return most[1:]
