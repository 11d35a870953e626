"""The curves that report, live page and W&B plot, with their axes.

To plot a field of a record, add it to a panel here. Report and live page draw the panels; W&B gets
every number of every kind in `PHASES`, over the axis of its phase.
"""

from __future__ import annotations

from dataclasses import dataclass

from sleep_rl.journal.schema import METRICS, Entry

MINUTES = "minutes since the start"


@dataclass(frozen=True)
class Curve:
    """The values of a field of one kind of record, or of the quotient of two fields."""

    kind: str
    field: str
    label: str = ""
    by: str = ""
    """Field with one curve per value, which is its label in place of `label`."""
    per: str = ""
    """Field of the divisor, e.g. seconds for a rate."""
    scale: float = 1.0


@dataclass(frozen=True)
class Panel:
    """A plot of several curves. `x`: MINUTES, or the label of an axis of steps."""

    title: str
    unit: str
    curves: tuple[Curve, ...]
    x: str = "seeding step, all nights"
    dots: bool = False
    """Plot single events as dots instead of a line."""
    text: str = ""

    @property
    def meaning(self) -> str:
        """Description of the curves: `text`, or the meanings in the schema."""
        if self.text:
            return self.text
        meanings = [(curve.label, METRICS[curve.kind][curve.field][0]) for curve in self.curves]
        if len(meanings) == 1:
            return meanings[0][1]
        return "; ".join(f"{label}: {meaning}" for label, meaning in meanings)


PANELS = (
    Panel("Seeding loss", "L_KS", (Curve("seed", "loss", "loss"),)),
    Panel(
        "Divergence",
        "nats per token",
        (
            Curve("seed", "divergence", "new"),
            Curve("seed", "divergence_replay", "replay"),
        ),
    ),
    Panel(
        "Imitation reward",
        "reward, 0 to 1",
        (
            Curve("seed", "reward_mean", "mixed"),
            Curve("seed", "reward_sem", "semantic"),
            Curve("seed", "reward_abs", "edit distance"),
        ),
    ),
    Panel("Log-probability gap", "nats per token", (Curve("seed", "logprob_gap", "gap"),)),
    Panel(
        "Baselines and wake",
        "nats per token",
        (Curve("wake", "loss", "wake"), Curve("baseline", "loss", by="method")),
        x="step",
        text="cross entropy of the baselines and in the wake phase",
    ),
    Panel(
        "Drift from the untouched base",
        "nats per token",
        (Curve("evaluate", "drift", by="method"),),
        x=MINUTES,
        dots=True,
    ),
    Panel(
        "Throughput",
        "tokens per second",
        (
            Curve("sample", "tokens_per_second", "sampled"),
            Curve("seed", "tokens_trained", "trained", per="seconds"),
        ),
        x=MINUTES,
        text="sampled: all rollout workers; trained: all learners",
    ),
    Panel(
        "Weight push: time",
        "seconds",
        (Curve("push", "seconds", by="name"),),
        x=MINUTES,
        dots=True,
    ),
    Panel(
        "Weight push: size",
        "MiB",
        (Curve("push", "bytes", by="name", scale=2**-20),),
        x=MINUTES,
        dots=True,
    ),
)

# ---- axes of W&B

AXES = {
    "wake": "day",
    "consolidate": "step",
    "dream": "step",
    "evaluate": "night",
    "workers": "minutes",
}
"""Phase -> its x axis, `<phase>/<axis>`; `step` for a phase that is not listed, which is that of a
baseline. `day`: number of the day; `step`: optimizer steps of the
phase over all nights (of dreaming also its rounds); `night`: number of the night, 0 is the base
model; `minutes`: since the start of the run.
"""

PHASES = {
    "wake": "wake",
    "written": "consolidate",
    "seed": "consolidate",
    "flow": "consolidate",
    "night": "consolidate",
    "evaluate": "evaluate",
    "context": "evaluate",
    "dreamed": "dream",
    "policy": "dream",
    "tried": "dream",
    "sample": "workers",
    "push": "workers",
    "scaled": "workers",
}
"""Kind -> phase. A baseline's phase is its method, that of a consolidation of dreams `dream`."""


def phase_of(entry: Entry) -> str | None:
    """Return the phase of an entry, which decides its axis; None: it is not plotted."""
    if entry.kind == "baseline":
        return entry.method
    phase = PHASES.get(entry.kind)
    if phase == "consolidate" and (entry.sender or 0) < 0:
        return "dream"
    return phase


def axis_of(phase: str) -> str:
    """Return the name of a phase's x axis."""
    return f"{phase}/{AXES.get(phase, 'step')}"
