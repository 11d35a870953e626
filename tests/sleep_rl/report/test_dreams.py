"""The list of dreams, with filters and sorting, and the section of the report."""

import json
import re

import pytest

from sleep_rl.cli.main import main
from sleep_rl.contracts.errors import InputError
from sleep_rl.journal.schema import parse
from sleep_rl.report.dreams import dreams_of, listing, section, state
from sleep_rl.report.page import write_report


def record(number, task="day1/a", night=1, reason="", kept=True, gain=None, **fields):
    tried = (
        {}
        if gain is None
        else {
            "tau_before": 0.25,
            "taus": [0.25 + gain] * 3,
            "gain": gain,
            "held_out": gain / 2,
            "reward": int(gain > 0),
        }
    )
    empty = {"tau_before": None, "taus": [], "gain": None, "held_out": None, "reward": None}
    return {
        "t": 1.0,
        "kind": "dream",
        "night": night,
        "round": 1,
        "task": task,
        "number": number,
        "seed": 1,
        "expert_seed": 2,
        "experts": {},
        "text": f"dream <{number}>\nof {task}",
        "logprob": -number - 1.0,
        "reason": reason,
        "importance": None if reason else 10.0 - number,
        "kept": kept,
        **empty,
        **tried,
        **fields,
    }


DREAMS = [
    record(0, gain=0.5),
    record(1, gain=-0.125),
    record(2, kept=False),
    record(3, reason="no eos token", kept=False),
    record(4, task="day2/b", night=2, gain=0.25),
    record(5, night=2, gain=0.0),
]
ROUND = {
    "t": 2.0,
    "kind": "dreamed",
    "night": 1,
    "round": 1,
    "written": 4,
    "kept": 2,
    "rewarded": 1,
    "failed": 1,
    "tau_before": 0.25,
    "gain": 0.19,
    "gain_rewarded": 0.5,
    "gain_held_out": None,
}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*DREAMS, ROUND]))
    return tmp_path


def entries(*records):
    return [parse(record) for record in records]


def numbers(text):
    return [
        int(line.split("<")[1].split(">")[0]) for line in text.splitlines() if "dream <" in line
    ]


def test_state_of_each_dream():
    assert [state(parse(d)) for d in DREAMS] == [
        "rewarded",
        "unrewarded",
        "rejected",
        "failed",
        "rewarded",
        "unrewarded",
    ]


@pytest.mark.parametrize(
    "how,found",
    [
        ({}, [0, 4, 5, 1, 2, 3]),
        ({"most": 2}, [0, 4]),
        ({"night": 2}, [4, 5]),
        ({"task": "day2"}, [4]),
        ({"only": "rewarded"}, [0, 4]),
        ({"only": "unrewarded"}, [5, 1]),
        ({"only": "rejected"}, [2]),
        ({"only": "failed"}, [3]),
        ({"sort": "importance"}, [0, 1, 2, 4, 5, 3]),
        ({"sort": "logprob", "night": 1}, [0, 1, 2, 3]),
        ({"task": "none"}, []),
    ],
)
def test_dreams_are_filtered_and_sorted(run, how, found):
    text = listing(run, **how)
    assert numbers(text) == found
    assert re.fullmatch(rf"{len(found)} of \d selected, 6 in total", text.splitlines()[-1])


def test_listing_has_a_line_of_figures_and_a_line_of_text(run):
    lines = listing(run, most=1).splitlines()
    assert lines[0].split() == [
        "night",
        "task",
        "dream",
        "omega",
        "tau",
        "before",
        "taus",
        "gain",
        "held",
        "out",
        "outcome",
    ]
    assert lines[1].split() == [
        "1.1",
        "day1/a",
        "0",
        "10",
        "0.25",
        "0.75",
        "0.75",
        "0.75",
        "0.50",
        "0.25",
        "rewarded",
    ]
    assert lines[2:] == ["    dream <0> of day1/a", "1 of 6 selected, 6 in total"]
    assert "no eos token" in listing(run, only="failed")


def test_invalid_options_are_named(run, tmp_path):
    for how, line in (
        ({"only": "good"}, "--only: one of rewarded, unrewarded, rejected, failed, got good"),
        (
            {"sort": "size"},
            "--sort: one of gain, held_out, importance, tau_before, logprob, got size",
        ),
    ):
        with pytest.raises(InputError, match=f"^{line}$"):
            listing(run, **how)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(ROUND) + "\n")
    with pytest.raises(InputError, match=r"no dreams; a run with dream.rounds above 0 has some"):
        dreams_of(tmp_path)


def test_command_prints_the_listing(run, capsys):
    assert main(["dreams", str(run), "--only", "rewarded", "--most", "1"]) == 0
    assert numbers(capsys.readouterr().out) == [0]
    assert main(["dreams", str(run), "--only", "x"]) == 2


def test_report_shows_best_worst_and_rejected_dreams(run):
    html = section(entries(*DREAMS, ROUND))
    best = html.index("<h3>Best")
    worst = html.find("<h3>Worst")
    rejected = html.index("<h3>Rejected")
    assert best < rejected and worst == -1  # four tried ones are all among the best six
    few = section(entries(*DREAMS, ROUND), most=2)
    best = few.index("<h3>Best")
    worst = few.index("<h3>Worst")
    rejected = few.index("<h3>Rejected")
    assert (
        numbers_in(few[best:worst]) == [0, 4]
        and numbers_in(few[worst:rejected]) == [1, 5]
        and numbers_in(few[rejected:]) == [2]
    )
    cell = '<td class="n">{}</td>'.format
    assert cell("0.19") + cell("0.50") + cell("-") in html  # of nothing there is no mean
    evaluated = {
        "t": 3.0,
        "kind": "evaluate",
        "after": "night 1",
        "method": "sleep",
        "row": {},
        "deeper": {"reversed": 0.375, "two-hop": 0.25},
    }
    assert cell("night 1") + cell("sleep") + cell("0.38") + cell("0.25") in section(
        entries(*DREAMS, ROUND, evaluated)
    )
    assert section(entries(*DREAMS)) == "" and "<h2>Dreams</h2>" in write_report(run).read_text()


def numbers_in(html):
    return [int(part.split("&gt;")[0]) for part in html.split("dream &lt;")[1:]]
