"""The critic: tries dreams out on isolated copies of the model (dream_contracts.Critic; paper.md
section 4, step 3).

Copies are trained in torch, many at once, and answer in one vLLM engine, in one batch, each under
an adapter id that is never used again. Suffixes: `_N` trials of one call.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from vllm.lora.request import LoRARequest

from actors.batched_lora import Copies, train
from actors.engine import SHARED_MEMORY
from actors.rollout import RolloutWorker
from sleep_rl.contracts.errors import Failure, InputError, one_line
from sleep_rl.contracts.records import LoadReport, Sampling, Trial, Weights
from sleep_rl.model import checkpoints
from sleep_rl.model.memory import write_tensors
from sleep_rl.model.tensor_digest import digest

Answers = tuple[tuple[int, ...], ...]


class CriticWorker(RolloutWorker):
    """A rollout worker whose engine takes LoRA adapters, beside the same model in torch to train
    them.

    `rank` and `alpha` of the copies; `together`: copies of one forward pass, and adapters that the
    engine holds at once. Raises InputError as RolloutWorker does, and for a rank that vLLM does not
    know.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        dtype: str,
        engine: dict,
        seed: int,
        rank: int,
        alpha: float,
        together: int,
        device: str = "cpu",
        probe_tolerance: float = 1e-3,
        threads: int = 1,
    ):
        torch.set_num_threads(threads)
        self._threads = threads
        lora = {
            "enable_lora": True,
            "max_loras": together,
            "max_cpu_loras": together,
            "max_lora_rank": max(rank, 8),
        }
        super().__init__(
            checkpoint,
            dtype=dtype,
            engine={**engine, **lora},
            seed=seed,
            probe_tolerance=probe_tolerance,
        )
        self._model = checkpoints.load(checkpoint, dtype=getattr(torch, dtype)).to(device)
        self._pad = self._model.config.pad_token_id or 0
        self._rank, self._alpha, self._together, self._next_id = rank, alpha, together, 1

    def load(self, weights: Weights) -> LoadReport:
        """Takes a version into the engine and into the model that copies are made of. See
        dream_contracts.Critic.
        """
        loaded = super().load(weights)
        manifest = self._states[weights.name].manifest
        write_tensors(self._model, {key: self._cache[wanted] for key, wanted in manifest.items()})
        return loaded

    def digest(self) -> str:
        """Of every weight of the torch model and of the engine's memory; vLLM's own base weights
        are packed on CPU and answer for themselves in a push's probe.
        """
        whole = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self._model.state_dict().items()):
            whole.update(f"{name} {digest(tensor)}".encode())
        for key, found in sorted(self._engine.memory_digests(list(self._live))[0].items()):
            whole.update(f"{key} {found}".encode())
        return whole.hexdigest()

    def try_out(
        self, trials_N: list[Trial], name: str, version: int, how: Sampling
    ) -> list[Answers | Failure]:
        """See dream_contracts.Critic. Copies of like length are trained together; all that a stack
        of them is asked is one batch of the engine.
        """
        if how.temperature != 0:
            raise InputError(
                f"critic: answers are greedy, temperature 0 is allowed, got {how.temperature}"
            )
        self._switch(name, version)
        result: list[Answers | Failure] = [Failure("was not tried", "critic")] * len(trials_N)
        fit = []
        for n, trial in enumerate(trials_N):
            reason = self._reason(trial)
            if reason:
                result[n] = Failure(reason, "critic")
            else:
                fit.append(n)
        plain = [n for n in fit if not trials_N[n].rows]
        taught = sorted(
            (n for n in fit if trials_N[n].rows), key=lambda n: (_longest(trials_N[n]), n)
        )
        stacks = [taught[i : i + self._together] for i in range(0, len(taught), self._together)]
        answered = [(plain, self._ask([trials_N[n] for n in plain], [None] * len(plain), how))]
        answered += zip(
            stacks, self._learned([[trials_N[n] for n in stack] for stack in stacks], how)
        )
        for group, answers_N in answered:
            for n, answers in zip(group, answers_N, strict=True):
                result[n] = answers
        return result

    def _learned(
        self, stacks: list[list[Trial]], how: Sampling
    ) -> Iterator[list[Answers | Failure]]:
        """The answers of each stack's copies. While the engine answers for one stack, torch trains
        the next.
        """
        with ThreadPoolExecutor(
            1, initializer=torch.set_num_threads, initargs=(self._threads,)
        ) as side:

            def trained(stack: list[Trial]) -> Future:
                return side.submit(train, self._model, stack, self._rank, self._alpha, self._pad)

            ahead = [trained(stack) for stack in stacks[:1]]
            for number, stack in enumerate(stacks):
                copies, loss_N = ahead.pop().result()
                ahead = [trained(coming) for coming in stacks[number + 1 : number + 2]]
                yield self._answers(stack, copies, loss_N, how)

    def _reason(self, trial: Trial) -> str:
        """Why a trial cannot be made; empty when it can."""
        if not trial.questions:
            return "nothing is asked"
        if trial.rows and (trial.epochs < 1 or not trial.lr > 0):
            return f"epochs from 1 and lr above 0 are allowed, got {trial.epochs} and {trial.lr}"
        for prompt, completion in trial.rows:
            if not prompt or not completion:
                return "a training row without prompt or completion"
            if reason := self._engine.refusal((prompt + completion)[:-1]):
                return f"a training row: {reason}"
        return next((reason for q in trial.questions if (reason := self._engine.refusal(q))), "")

    def _answers(
        self, trials_N: list[Trial], copies: Copies, loss_N: list[float], how: Sampling
    ) -> list[Answers | Failure]:
        result: list[Answers | Failure] = [
            Failure(f"the copy's loss became {loss}", "critic") for loss in loss_N
        ]
        loaded: dict[int, LoRARequest] = {}
        with tempfile.TemporaryDirectory(
            prefix="sleep_rl-", dir=SHARED_MEMORY if Path(SHARED_MEMORY).is_dir() else None
        ) as at:
            try:
                for n in (n for n, loss in enumerate(loss_N) if math.isfinite(loss)):
                    adapter = self._adapter(copies, n, Path(at))
                    if reason := self._refused(adapter):
                        result[n] = Failure(f"its adapter was not loaded: {reason}", "critic")
                    else:
                        loaded[n] = adapter
                answered = self._ask([trials_N[n] for n in loaded], list(loaded.values()), how)
            finally:
                for adapter in loaded.values():
                    self._engine.llm.llm_engine.remove_lora(adapter.lora_int_id)
        for n, answers in zip(loaded, answered, strict=True):
            result[n] = answers
        return result

    def _refused(self, adapter: LoRARequest) -> str:
        """Loads an adapter; why the engine does not take it, or empty."""
        try:
            return "" if self._engine.llm.llm_engine.add_lora(adapter) else "vLLM said no"
        except Exception as error:
            # vLLM raises what its loader raises; the engine goes on without the adapter
            return one_line(error)

    def _adapter(self, copies: Copies, number: int, folder: Path) -> LoRARequest:
        name, self._next_id = f"dream-{self._next_id}", self._next_id + 1
        copies.save(number, folder / name)
        return LoRARequest(name, self._next_id - 1, str(folder / name))

    def _ask(
        self, trials_N: list[Trial], adapters_N: list[LoRARequest | None], how: Sampling
    ) -> list[Answers | Failure]:
        """All questions of all trials in one batch, each through its copy's adapter."""
        asked = [
            (q, adapter)
            for trial, adapter in zip(trials_N, adapters_N, strict=True)
            for q in trial.questions
        ]
        params = [self._params(len(q), 0, how) for q, _ in asked]
        outputs = iter(
            self._engine.generate((q for q, _ in asked), params, [adapter for _, adapter in asked])
        )
        result: list[Answers | Failure] = []
        for trial in trials_N:
            mine = [next(outputs).outputs[0] for _ in trial.questions]
            ended = [o.finish_reason for o in mine if o.finish_reason not in ("stop", "length")]
            result.append(
                Failure(f"vLLM ended a question with {ended[0]}", "critic")
                if ended
                else tuple(tuple(o.token_ids) for o in mine)
            )
        return result


def _longest(trial: Trial) -> int:
    """Tokens of the longest training row, times the steps: copies that take about as long go
    together.
    """
    return max(len(p) + len(c) for p, c in trial.rows) * len(trial.rows) * trial.epochs
