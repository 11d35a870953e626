"""Measure each part of a night of SmolLM2 beside the bound that matrix multiplication sets.

    .venv/bin/python -m benchmarks.night_parts [--steps 4] [--prompts 32] [--uncached] [KEY=VALUE]

The parts, each in a fresh process and one after the other: the teacher writes questions about
documents (the vLLM engine of a rollout worker); the learner's teacher reads the rows of a step; the
student's forward and backward pass and the optimizer, on sequences that are new in this night and
on the same ones again. The settings are those of configs/documents.yaml, over configs/example.

Tokens of a step are those that the student reads, prompts included and padding not. The bound is
the time of the part's multiplications alone, at the rate of `torch.mm` here with the sizes of the
model, in the same data type and with the same threads; see `matmul_work`. --uncached: memory in
every layer and no cached documents, as before these two.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.matmul_work import Decoder, Rate, Work, measured_rate
from benchmarks.smollm2_rows import SmolNight, student_tokens
from sleep_rl.config.schema import threads_on
from sleep_rl.contracts.records import TrainingRow
from sleep_rl.model.packing import PaddedRows

if TYPE_CHECKING:
    from learners.hidden_state_cache import TeacherInput
    from learners.worker import LearnerWorker

RESULT = "RESULT "
PASS_ROWS = 1024  # tokens of a pass, about as many as a step has
WARM_UP_PROMPTS = 2
CORES = (1, 2)  # threads for which the rate is printed


@dataclass(frozen=True)
class Part:
    """A measured part of a night."""

    name: str
    threads: int
    tokens: int
    seconds: float
    works: tuple[Work, ...]  # the multiplications that it needs

    def row(self, rates: dict[tuple[int, int], Rate]) -> tuple[str, ...]:
        """Return the row of the table; `rates`: by (threads, rows)."""
        bound = sum(rates[self.threads, work.rows].seconds(work) for work in self.works)
        figures = (self.tokens / self.seconds, self.tokens / bound)
        share = bound / self.seconds
        return (self.name, str(self.threads), *(f"{rate:.0f}" for rate in figures), f"{share:.2f}")


def decoder_of(night: SmolNight) -> Decoder:
    """Return the sizes of the night's model."""
    return Decoder(night.shape, night.config.model.d_low, night.config.model.first_layer)


# ---- writing


def measure_writing(night: SmolNight, count: int) -> list[Part]:
    """Return the part of the rollout worker, which writes questions from `count` prompts."""
    from actors.engine import Engine
    from sleep_rl.contracts.records import Sampling
    from sleep_rl.model import checkpoints
    from sleep_rl.model.memory_shape import memory_of

    config = night.config
    asked = night.questions(count + WARM_UP_PROMPTS)
    params = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = checkpoints.expand(night.base, f"{folder}/sleep", memory_of(config))
        engine = Engine(checkpoint, dtype=config.model.dtype, options=config.rollout_engine, seed=0)
        for item, prompt_T in asked:
            temperature = item.kind.temperature or config.generation.temperature
            sampling = Sampling(night.question_tokens, temperature, night.codec.ends)
            params.append(engine.sampling_params(len(prompt_T), item.seed, sampling))
        prompts = [prompt_T for _, prompt_T in asked]
        engine.generate(prompts[count:], params[count:])
        engine.reset_prefix_cache()
        began = time.perf_counter()
        outputs = engine.generate(prompts[:count], params[:count])
        seconds = time.perf_counter() - began
        engine.close()
    lengths = [(len(o.prompt_token_ids), o.num_cached_tokens or 0) for o in outputs]
    written = [len(output.outputs[0].token_ids) for output in outputs]
    works = writing_works(decoder_of(night), lengths, written)
    threads = threads_on(config.rollouts.cpus)
    return [Part("teacher writes", threads, sum(written), seconds, works)]


def writing_works(
    decoder: Decoder, prompts: list[tuple[int, int]], written: list[int]
) -> tuple[Work, ...]:
    """Return the multiplications of reading prompts, (length, tokens in the prefix cache) of each,
    and of writing as many tokens behind each, all sequences at the same time.
    """
    count = len(prompts)
    read = sum(decoder.forward(length - cached, cached) for length, cached in prompts)
    # the last token is not read, the first comes from the prompt's own pass
    pairs = list(zip(prompts, written, strict=True))
    behind = sum(decoder.forward(tokens - 1, length) for (length, _), tokens in pairs)
    return (
        Work(PASS_ROWS, layers=read),
        Work(count, layers=behind, head=decoder.head(sum(written))),
    )


# ---- learning


class LearnerWork:
    """Counts the multiplications of steps, of what the learner's caches do not hold yet.

    `document_of` returns the cache key of the document that a teacher's input begins with, None
    where it is read with the input.
    """

    def __init__(
        self, decoder: Decoder, document_of: Callable[[TeacherInput], TeacherInput | None]
    ):
        self.decoder = decoder
        self.document_of = document_of
        self.read: set[TeacherInput] = set()
        self.trunks: set[tuple[int, ...]] = set()

    def teacher(self, rows: list[TrainingRow]) -> Work:
        """Return the multiplications of the teacher's last hidden states of these rows."""
        from learners.teacher import teacher_input

        layers = 0.0
        for key in map(teacher_input, rows):
            if key in self.read:
                continue
            self.read.add(key)
            document = self.document_of(key)
            if document is None:
                layers += self._trunk(key.prompt_T + key.completion_T)
                layers += self._upper(len(key.prompt_T) + len(key.completion_T))
                continue
            past = len(document.prompt_T)
            if document not in self.read:
                self.read.add(document)
                layers += self.decoder.forward(past)
            tokens = len(key.prompt_T) + len(key.completion_T) - past
            layers += self.decoder.forward(tokens, past)
        return Work(PASS_ROWS, layers)

    def student(self, rows: list[TrainingRow]) -> Work:
        """Return those of the student's passes with one new expert, and of the logits of both: the
        student's and their gradient, and the teacher's. Tokens with which rows begin alike count
        once in the layers with memory.
        """
        from learners.shared_prefix import shared_prefixes

        sequences = [row.prompt_T + row.completion_T for row in rows]
        layers = sum(map(self._trunk, sequences))
        padded = PaddedRows.of(
            [row.prompt_T for row in rows], [row.completion_T for row in rows], 0, "cpu"
        )
        for numbers, shared in shared_prefixes(padded) or [(range(len(rows)), 0)]:
            layers += self._upper(shared, experts=1) + self.decoder.backward(shared)
            for number in numbers:
                tokens = len(sequences[number]) - shared
                layers += self._upper(tokens, shared, experts=1)
                layers += self.decoder.backward(tokens, shared)
        positions = sum(len(row.completion_T) for row in rows)
        return Work(PASS_ROWS, layers, 3 * self.decoder.head(positions))

    def _trunk(self, sequence: tuple[int, ...]) -> float:
        if sequence in self.trunks:
            return 0.0
        self.trunks.add(sequence)
        return self.decoder.forward(len(sequence), last=self.decoder.first_layer)

    def _upper(self, tokens: int, past: int = 0, experts: int = 0) -> float:
        return self.decoder.forward(tokens, past, self.decoder.first_layer, experts=experts)


def measure_learning(night: SmolNight, steps: int) -> list[Part]:
    """Return the parts of a learner, over `steps` steps on new rows and again on the same ones."""
    from cluster.runtime.backend import rank_environment
    from cluster.runtime.ports import reserve_port
    from learners.document_states import document_of
    from learners.worker import LearnerWorker
    from sleep_rl.model import checkpoints
    from sleep_rl.model.memory_shape import memory_of

    *batches, warm_up = night.batches(steps + 1)
    with reserve_port("127.0.0.1") as reserved, tempfile.TemporaryDirectory() as folder:
        os.environ.update(rank_environment(0, 1, *reserved.getsockname()))
        checkpoint = checkpoints.expand(night.base, f"{folder}/sleep", memory_of(night.config))
        learner = LearnerWorker(checkpoint, night.config)
    learner.open_night(1)
    learner.seed_step(warm_up, 0, night.config.sleep.steps)

    def cached_document(key: TeacherInput) -> TeacherInput | None:
        suits = learner.teacher.documents.suits(learner.model, key)
        return document_of(key) if suits else None

    work = LearnerWork(decoder_of(night), cached_document)
    work.teacher(warm_up)
    return [
        *timed_epoch(learner, batches, work, "new"),
        *timed_epoch(learner, batches, work, "known"),
    ]


def timed_epoch(
    learner: LearnerWorker, batches: list[list[TrainingRow]], work: LearnerWork, name: str
) -> list[Part]:
    """Return the parts of one epoch over `batches`, whose rows are called `name`."""
    spent = []
    reading = learner.teacher.hidden

    def timed_reading(*arguments: Any) -> Any:
        began = time.perf_counter()
        result = reading(*arguments)
        spent.append(time.perf_counter() - began)
        return result

    learner.teacher.hidden = timed_reading
    began = time.perf_counter()
    for step, rows in enumerate(batches, start=1):
        learner.seed_step(rows, step, learner.config.sleep.steps)
    seconds = time.perf_counter() - began
    learner.teacher.hidden = reading
    reads = [work.teacher(rows) for rows in batches]
    learns = [work.student(rows) for rows in batches]
    measured = [
        ("teacher reads", sum(spent), reads),
        ("student learns", seconds - sum(spent), learns),
        ("whole step", seconds, reads + learns),
    ]
    if not any(read.layers for read in reads):
        del measured[0]  # it comes from the cache
    tokens = sum(map(student_tokens, batches))
    threads = learner.config.learners.threads
    return [
        Part(f"{what}, {name} rows", threads, tokens, duration, tuple(works))
        for what, duration, works in measured
    ]


# ---- processes


def measure_rates(night: SmolNight, needed: list[tuple[int, int]]) -> list[Rate]:
    """Return the rate of each (threads, rows)."""
    decoder = decoder_of(night)
    dtype = night.config.model.dtype
    return [measured_rate(decoder, dtype, rows, threads) for threads, rows in needed]


def in_process(what: str, threads: int, arguments: argparse.Namespace, *more: str) -> list[dict]:
    """Return what `--only what` prints in a fresh process with this number of threads.

    Exits with the end of its output if it fails.
    """
    from actors.environment import cpu_environment

    command = [sys.executable, "-m", "benchmarks.night_parts", "--only", what, *more]
    command += ["--steps", str(arguments.steps), "--prompts", str(arguments.prompts)]
    command += ["--uncached"] * arguments.uncached + arguments.overrides
    environment = os.environ | cpu_environment(threads) | {"HF_HUB_OFFLINE": "1"}
    print(f"measuring {what} ...", file=sys.stderr, flush=True)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if done.returncode or not lines:
        sys.exit(f"{what} failed:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    return json.loads(lines[-1].removeprefix(RESULT))


def read_part(plain: dict) -> Part:
    """Return the part whose fields `in_process` returned."""
    return Part(**plain | {"works": tuple(Work(**work) for work in plain["works"])})


def measure(only: str, night: SmolNight, arguments: argparse.Namespace) -> list:
    """Return what a process measures."""
    if only == "writing":
        return measure_writing(night, arguments.prompts)
    if only == "learning":
        return measure_learning(night, arguments.steps)
    return measure_rates(night, json.loads(arguments.needed))


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Print rows of text, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--uncached", action="store_true")
    parser.add_argument("--only", choices=("writing", "learning", "rates"), help=argparse.SUPPRESS)
    parser.add_argument("--needed", default="[]", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    night = SmolNight(arguments.overrides, uncached=arguments.uncached)
    if arguments.only:
        measured = measure(arguments.only, night, arguments)
        print(RESULT + json.dumps([asdict(each) for each in measured]), flush=True)
        return
    writers = threads_on(night.config.rollouts.cpus)
    learners = night.config.learners.threads
    parts = in_process("writing", writers, arguments)
    parts = [read_part(part) for part in parts + in_process("learning", learners, arguments)]
    threads = {*CORES, writers, learners}
    needed = sorted((n, work.rows) for n in threads for work in parts[0].works)
    plain = in_process("rates", max(threads), arguments, "--needed", json.dumps(needed))
    rates = {key: Rate(**rate) for key, rate in zip(needed, plain, strict=True)}
    for (count, rows), rate in rates.items():
        print(
            f"torch.mm in {night.config.model.dtype}, {count} threads, {rows} rows: "
            f"{rate.layers / 1e9:.0f} GFLOP/s of the layers, {rate.head / 1e9:.0f} of the head"
        )
    header = ("part", "threads", "tokens/s", "bound", "share of it")
    print_table([header, *(part.row(rates) for part in parts)])


if __name__ == "__main__":
    main()
