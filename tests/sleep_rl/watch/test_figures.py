"""Figures of the live page: when they are drawn."""

import re

from sleep_rl.watch import figures
from tests.fakes.watched_runs import begin, seed


def test_figures_equal_the_report_and_are_redrawn_on_change(tmp_path, watch, monkeypatch):
    drawn = []
    draw = figures.figure
    monkeypatch.setattr(figures, "figure", lambda chart: drawn.append(chart) or draw(chart))
    monkeypatch.setattr(figures, "REDRAW_S", 0.0)
    monkeypatch.setattr(figures, "SHARE", 1e9)
    journal = begin(tmp_path)
    client = watch()
    seed(journal, 1, 0, 1)
    version = client.state()["curves"]
    status, headers, html = client.ask("/curves")
    assert status == 200 and headers["ETag"] == f'"{version}"'
    titles = re.findall(r"<figure><h3>(.*?)</h3>", html)
    assert titles[:2] == ["Seeding loss", "Divergence"] and html.count("<svg") == len(titles)
    assert "loss <b>1.1</b>" in html and len(drawn) == len(titles)
    svgs = re.findall(r"<svg.*?</svg>", html, flags=re.S)
    report = client.ask("/report")[2]
    assert all(svg in report for svg in svgs)
    # what does not change a chart is no reason to draw it
    del drawn[:]
    journal.log("flow", night=1, round=1)
    assert client.state()["curves"] == version
    journal.log("push", name="student", version=1, bytes=5, seconds=0.5)
    assert client.state()["curves"] != version
    assert client.ask("/curves")[1]["ETag"] == f'"{client.state()["curves"]}"'
    assert [chart.panel.title for chart in drawn] == ["Weight push: time", "Weight push: size"]


def test_drawing_is_rate_limited(tmp_path, watch):
    journal = begin(tmp_path)
    client = watch()
    seed(journal, 1, 0)
    version = client.state()["curves"]
    assert client.ask("/curves")[1]["ETag"] == f'"{version}"'
    for step in range(1, 4):
        seed(journal, 1, step)
        assert client.state()["curves"] != version
        # the figures of before, and they say so
        assert client.ask("/curves")[1]["ETag"] == f'"{version}"'
