"""The current phase of a run as text, with its step and the estimated time left."""

from __future__ import annotations

from collections import deque
from typing import Any

from sleep_rl.journal.retention import BASE, label_of_method
from sleep_rl.journal.schema import (
    BaselineStep,
    Done,
    DreamResult,
    DreamSummary,
    Entry,
    Evaluation,
    Night,
    PolicyStep,
    RolledBack,
    RunStart,
    SeedStep,
    TrialSummary,
    WakePhase,
    Written,
)
from sleep_rl.journal.text import clock, night_label

PACE_STEPS = 50
"""Number of the newest steps that the estimated time is based on."""


class Phase:
    """The current phase, and the time left at the pace of its newest steps."""

    def __init__(self) -> None:
        self._nights: int | None = None
        """Nights of the whole life, if known."""
        self._text = ""
        self._time: float | None = None
        self._steps = 0
        self._pace: deque[tuple[float, int]] = deque(maxlen=PACE_STEPS)
        """Time and number of the newest steps."""

    def begin(self, nights: int | None) -> None:
        """Take the number of nights of the run that begins; None: unknown."""
        self._nights = nights

    def add(self, entry: Entry) -> None:
        """Process the next entry; one that only concerns workers is ignored."""
        text = _describe(entry)
        if not text:
            return
        night = getattr(entry, "night", None)
        if night and self._nights:
            text = text.replace(f"Night {night}", f"Night {night} of {self._nights}", 1)
        if text != self._text:
            self._pace.clear()
        self._text = text
        self._time = entry.t
        self._steps = int(getattr(entry, "steps", None) or 0)
        step = getattr(entry, "step", None)
        if self._steps and step is not None:
            self._pace.append((entry.t, int(step)))
        else:
            self._steps = 0

    def state(self) -> dict[str, Any]:
        """Return the description `text` and the time `t` of the newest entry; for a phase of
        optimizer steps also `step`, `steps` and, after two steps, the time `left`.
        """
        if not self._text:
            return {}
        state: dict[str, Any] = {"text": self._text, "t": self._time}
        if self._steps:
            (t0, step0) = self._pace[0]
            (t1, step1) = self._pace[-1]
            state |= {"step": step1 + 1, "steps": self._steps}
            if step1 > step0 and t1 > t0:
                pace = (t1 - t0) / (step1 - step0)
                state["left"] = clock(max(self._steps - step1 - 1, 0) * pace)
        return state


def _describe(entry: Entry) -> str:
    """Return a description of the phase; empty for an entry that belongs to none."""
    if isinstance(entry, RunStart):
        return "Started: workers and base model"
    if isinstance(entry, Done):
        return "Ended"
    if isinstance(entry, WakePhase):
        return f"{entry.day}: wake, {entry.step} documents"
    if isinstance(entry, BaselineStep):
        return f"Baseline: {label_of_method(entry.method)}, {entry.day}"
    if isinstance(entry, Evaluation):
        when = "before the first day" if entry.after == BASE else f"after {entry.after}"
        return f"Evaluated: {label_of_method(entry.method)}, {when}"
    return _describe_night(entry)


def _describe_night(entry: Entry) -> str:
    label = night_label(getattr(entry, "night", None), getattr(entry, "sender", 0))
    label = label.capitalize()
    match entry:
        case Written():
            text = (
                f"teacher generated {entry.new or 0:,} new sequences, "
                f"{entry.unconditional or 0:,} unconditional"
            )
        case SeedStep():
            text = "consolidation"
        case Night():
            text = "consolidated"
        case DreamResult():
            text = f"dreaming, round {entry.round}"
        case TrialSummary():
            text = f"{entry.dreams} dreams tried out on {entry.copies} copies"
        case DreamSummary():
            text = f"{entry.rewarded} of {entry.written} dreams rewarded"
        case PolicyStep():
            text = "dreaming policy"
        case RolledBack():
            text = f"rolled back, accuracy of {entry.column} dropped too much"
        case _:
            return ""
    return f"{label}: {text}"
