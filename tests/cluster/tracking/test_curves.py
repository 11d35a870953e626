"""curves.py: W&B updates of records; a panel declared once is drawn everywhere."""

import re

import pytest

from cluster.tracking.curves import Curves
from sleep_rl.journal import series
from sleep_rl.journal.journal import Journal, read
from sleep_rl.journal.panels import PANELS, Curve, Panel
from sleep_rl.report.page import page
from sleep_rl.watch.server import Server


@pytest.fixture
def run(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    for step in range(3):
        journal.log("seed", night=1, sender=0, step=step, steps=3, loss=1.0, lr=0.25 * step)
    journal.close()
    return tmp_path


def test_a_field_added_to_a_panel_appears_in_report_live_page_and_wandb(run, monkeypatch):
    journal = run / "metrics.jsonl"
    assert "Learning rate" not in page(journal)
    panel = Panel("Learning rate", "per step", (Curve("seed", "lr", "rate"),))
    monkeypatch.setattr(series, "PANELS", (*PANELS, panel))

    report = page(journal)
    figure = report.split("<h3>Learning rate</h3>")[1].split("</figure>")[0]
    assert "learning rate</figcaption>" in figure and ">per step</text>" in figure

    server = Server(run, "127.0.0.1", 0, lambda folder: True)
    try:
        server.state()
        live = server.curves()[1].decode()
    finally:
        server.server_close()
    [svg] = re.findall(r"<svg role=\"img\" aria-label=\"Learning rate\".*?</svg>", live, re.DOTALL)
    assert svg in figure and "rate <b>0.5</b>" in live

    curves = Curves()
    numbers = [curves.take(record).numbers for record in read(journal)]
    points = [(n["consolidate/step"], n["consolidate/seed/lr"]) for n in numbers]
    assert points == [(1, 0.0), (2, 0.25), (3, 0.5)]


def test_a_record_that_does_not_parse_gives_an_empty_update():
    curves = Curves()
    for record in (
        {"kind": "torn", "line": 1, "text": "{"},
        {"kind": "evaluate", "t": 1.0},
        {"kind": "seed", "t": 1.0, "step": "one", "loss": 1.0},
    ):
        update = curves.take(record)
        assert not update.numbers and not update.tables and not update.summary
    assert curves.rows == 0
