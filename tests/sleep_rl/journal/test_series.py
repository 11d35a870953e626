"""Curves of a growing run in bounded memory, and the charts of the panels."""

import pytest

from sleep_rl.journal import series
from sleep_rl.journal.panels import AXES, MINUTES, PANELS, PHASES, Curve, Panel, axis_of, phase_of
from sleep_rl.journal.schema import METRICS, BaselineStep, Push, SeedStep, WakePhase
from sleep_rl.journal.series import MOST, MOST_NAMES, Charts, StepCurves, Trace


def test_trace_downsamples_to_means():
    trace = Trace()
    for x in range(100_000):
        trace.add(x, 2 * x + 1)
    points = trace.points()
    assert MOST / 2 < len(points) <= MOST and len(trace._means) <= 2 * MOST
    assert all(y == pytest.approx(2 * x + 1, rel=1e-3) for x, y in points)
    assert points[0][0] < 400 and points[-1][0] > 99_000
    assert Trace().points() == []


def test_invalid_values_become_gaps():
    trace = Trace()
    for x, y in enumerate([1.0, None, float("nan"), "4", 3.0]):
        trace.add(x, y)
    assert trace.points() == [(0.0, 1.0), (1.0, None), (2.0, None), (3.0, None), (4.0, 3.0)]
    assert trace.points(1) == [(2.0, 2.0)]


def test_nights_share_one_axis_with_gaps():
    curves = StepCurves("loss", "divergence")
    for night, done in ((1, 3), (2, 2)):
        for step in range(done):
            entry = SeedStep(t=0.0, step=step, steps=3, loss=night + step / 10)
            curves.add((night,), f"night {night}", entry)
    assert curves.points("loss") == [(0, 1.0), (1, 1.1), (2, 1.2), (3, None), (3, 2.0), (4, 2.1)]
    assert curves.nights() == [(0, "night 1"), (3, "night 2")]
    assert curves.points("divergence") == []


def test_many_nights_use_bounded_memory(monkeypatch):
    monkeypatch.setattr(series, "MOST", 40)
    curves = StepCurves("loss")
    for night in range(30):
        for step in range(200):
            entry = SeedStep(t=0.0, step=step, steps=200, loss=float(night))
            curves.add((night,), f"night {night}", entry)
    points = curves.points("loss")
    assert (
        len(points) <= 3 * 40
        and sum(len(t._means) for p in curves.segments for t in p.traces.values()) <= 6 * 40
    )
    values = [y for _, y in points if y is not None]
    assert values == sorted(values) and set(values) == set(map(float, range(30)))


def step(night, number, loss, **more):
    return SeedStep(
        t=60.0 * number, night=night, sender=0, step=number, steps=10, loss=loss, **more
    )


def test_repeated_step_replaces_earlier_values():
    curves = StepCurves("loss")
    for entry in (
        step(1, 1, 5.0),
        step(1, 2, 4.0),
        step(2, 1, 3.0),
        step(2, 2, 9.0),
        step(2, 1, 2.0),
    ):
        curves.add((entry.night,), f"night {entry.night}", entry)
    assert [p for p in curves.points("loss") if p[1] is not None] == [(1, 5.0), (2, 4.0), (11, 2.0)]
    assert curves.nights() == [(0, "night 1"), (10, "night 2")]


def test_nonfinite_value_is_a_gap_and_missing_value_is_no_point():
    curves = StepCurves("loss", "divergence")
    for number in range(4):
        lost = number == 2
        entry = step(1, number, None if lost else 1.0, nonfinite=["loss"] if lost else [])
        entry.divergence = 0.5 if number in (0, 3) else None
        curves.add((1,), "night 1", entry)
    assert curves.points("loss") == [(0, 1.0), (1, 1.0), (2, None), (3, 1.0)]
    assert curves.points("divergence") == [(0, 0.5), (3, 0.5)]


def test_means_do_not_span_nights(monkeypatch):
    monkeypatch.setattr(series, "MOST", 4)
    curves = StepCurves("loss")
    for night in (1, 2):
        for number in range(4):
            entry = SeedStep(t=0.0, step=number, steps=4, loss=4.0 * (night - 1) + number)
            curves.add((night,), f"night {night}", entry)
    points = curves.points("loss")
    assert [p for p in points if p[1] is not None] == [
        (0.5, 0.5),
        (2.5, 2.5),
        (4.5, 4.5),
        (6.5, 6.5),
    ]
    assert [i for i, p in enumerate(points) if p[1] is None] == [2]  # between the nights


def chart(entries, title, panels=PANELS):
    charts = Charts(panels)
    for entry in entries:
        charts.add(entry)
    [chart] = [chart for chart in charts.charts() if chart.panel.title == title]
    return chart


def test_consolidations_of_one_night_are_separate_segments():
    """The steps of each consolidation of a night begin at 0."""
    entries = [step(1, 0, 1.0), step(1, 1, 2.0)]
    level = SeedStep(t=200.0, night=1, sender=1, step=0, steps=10, loss=3.0)
    loss = chart([*entries, level], "Seeding loss")
    [curve] = loss.series
    assert [p for p in curve.points if p[1] is not None] == [(0, 1.0), (1, 2.0), (10, 3.0)]
    assert loss.nights == ((0, "night 1"), (10, "night 1, level 1 to 2"))


def test_curves_by_field_and_rates():
    pushes = [Push(t=60.0 * i, name=name, bytes=2**20) for i, name in enumerate("abab")]
    size = chart(pushes, "Weight push: size")
    assert [(s.label, s.points) for s in size.series] == [
        ("a", [(0.0, 1.0), (2.0, 1.0)]),
        ("b", [(1.0, 1.0), (3.0, 1.0)]),
    ]
    trained = [step(1, 0, 1.0, tokens_trained=900, seconds=0.5), step(1, 1, 1.0, tokens_trained=1)]
    [rate] = chart(trained, "Throughput").series
    assert (rate.label, rate.points) == ("trained", [(0.0, 1800.0)])
    cross = [
        WakePhase(t=0.0, day="day 1", step=2, loss=1.0),
        BaselineStep(t=0.0, method="sft", day="day 1", step=0, loss=2.0),
    ]
    assert [(s.label, s.name) for s in chart(cross, "Baselines and wake").series] == [
        ("wake", ""),
        ("sft", "sft"),
    ]


def test_number_of_curves_per_field_is_bounded():
    pushes = [Push(t=0.0, name=f"state {i}", seconds=1.0) for i in range(100)]
    assert len(chart(pushes, "Weight push: time").series) == MOST_NAMES
    steps = [BaselineStep(t=0.0, method=f"m{i}", step=0, loss=1.0) for i in range(100)]
    assert len(chart(steps, "Baselines and wake").series) == MOST_NAMES


def test_every_curve_has_a_declared_field_with_meaning():
    for panel in PANELS:
        for curve in panel.curves:
            for name in filter(None, (curve.field, curve.by, curve.per)):
                assert name in METRICS[curve.kind], (panel.title, name)
            assert bool(curve.label) != bool(curve.by)
        assert panel.meaning and panel.unit
    assert len({panel.title for panel in PANELS}) == len(PANELS)
    assert PHASES.keys() <= METRICS.keys() and set(PHASES.values()) <= AXES.keys()


def test_added_curve_appears_in_charts():
    panels = (*PANELS, Panel("Learning rate", "", (Curve("seed", "lr", "rate"),)))
    [rate] = chart([step(1, 0, 1.0, lr=0.25)], "Learning rate", panels).series
    assert rate.points == [(0, 0.25)] and panels[-1].meaning == "learning rate"


def test_every_plotted_kind_has_a_wandb_axis():
    minutes = {curve.kind for panel in PANELS if panel.x == MINUTES for curve in panel.curves}
    for kind in minutes - {"seed", "evaluate"}:
        assert PHASES[kind] == "workers"
    assert phase_of(BaselineStep(t=0.0, method="sft", step=0)) == "sft"
    assert axis_of("newest_day") == axis_of("sft").replace("sft", "newest_day") == "newest_day/step"
    assert phase_of(BaselineStep(t=0.0, method="newest_day", step=0)) == "newest_day"
    assert phase_of(step(1, 0, 1.0)) == "consolidate"
    assert phase_of(SeedStep(t=0.0, step=0, sender=-1)) == "dream"
