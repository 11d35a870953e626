"""Probes of general ability: what their files may hold, and how they are scored."""

import json
import os
from pathlib import Path

import pytest

from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import Failure, InputError
from sleep_rl.contracts.records import TEACHER
from sleep_rl.driver.evaluation import evaluate
from sleep_rl.driver.measures.probes import MOST_ROWS, asked_of, begins_with, check, probe, read
from sleep_rl.journal.journal import read as read_journal
from sleep_rl.report.page import write_report
from sleep_rl.session.console import Console
from tests.fakes.configs import changed
from tests.fakes.reader import LikelihoodReader, reading_run

TAP = "The man turned on the tap, so"
CHOICES = [
    {"query": TAP, "choices": ["it rained.", "water flowed."], "gold": 1},
    {"query": "Question: What is blue?\n", "choices": ["sky", "grass", "a brick"], "gold": 0},
]
SCHEMA = [
    {
        "context_options": ["The cup fell off because the cup", "The cup fell off because Ann"],
        "continuation": "was pushed.",
        "gold": 0,
    }
]
WORDS = [{"context": "He lost the key, and looked for the", "continuation": "key"}]


def written(folder, name, rows):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_each_form_is_read(tmp_path):
    tap, blue = read(written(tmp_path, "choices", CHOICES))
    assert tap.contexts == (TAP,) * 2 and tap.gold == 1
    assert blue.contexts == ("Question: What is blue?\nAnswer:",) * 3
    assert blue.continuations == ("sky", "grass", "a brick")
    [cup] = read(written(tmp_path, "schema", SCHEMA))
    assert cup.contexts == tuple(SCHEMA[0]["context_options"]) and not cup.last_word
    assert cup.continuations == ("was pushed.", "was pushed.")
    [key] = read(written(tmp_path, "words", WORDS))
    assert key.last_word and key.continuations == ("key",)


@pytest.mark.parametrize(
    ("row", "got"),
    [
        ({"context": "Two and two?", "answer": "4"}, "context, answer"),
        ({"query": "x", "choices": ["only one"], "gold": 0}, "query, choices, gold"),
        ({"query": "x", "choices": ["a", "b"], "gold": 2}, "query, choices, gold"),
        ({"query": "x", "choices": ["a", "b"], "gold": "0"}, "query, choices, gold"),
        ({"query": "", "choices": ["a", "b"], "gold": 0}, "query, choices, gold"),
        ({"query": "x", "choices": ["a", 3], "gold": 0}, "query, choices, gold"),
    ],
)
def test_a_row_of_another_form_is_one_line(row, got, tmp_path):
    path = written(tmp_path, "bad", [CHOICES[0], row])
    with pytest.raises(InputError) as caught:
        check([path])
    expected = (
        f"evaluate.probes: {path}: line 2: expected query, choices and gold; context_options, "
        f"continuation and gold; or context and continuation, got {got}"
    )
    assert str(caught.value) == expected


def test_files_that_cannot_be_used_are_one_line(tmp_path):
    good = written(tmp_path, "good", WORDS)
    (tmp_path / "b").mkdir()
    twin = written(tmp_path / "b", "good", WORDS)
    (tmp_path / "none.jsonl").write_text("\n")
    for paths, says in (
        ([good, twin], r"^evaluate\.probes: files with different names, got good, good$"),
        ([str(tmp_path / "none.jsonl")], r"none\.jsonl: expected at least one row, got none$"),
        ([str(tmp_path / "gone.jsonl")], r"gone\.jsonl: cannot be read .No such file"),
    ):
        with pytest.raises(InputError, match=says):
            check(paths)
    with pytest.raises(InputError, match=r"small base knows no other text, got good$"):
        check([good], natural=False)
    check([good])
    check([], natural=False)


def knowing_run(folder, likely=None, words=None, console=None, **evaluate):
    run = reading_run(folder, changed(Config(), evaluate=evaluate), console=console)
    knowing = LikelihoodReader(run.codec, likely or {}, words or {})
    object.__setattr__(run, "crew", knowing)
    return run


def test_a_choice_is_right_if_its_likelihood_per_character_is_the_largest(tmp_path):
    """12 characters for 12 nats against 10 for 11; the shorter text alone would win by its sum."""
    likely = {
        f"{TAP} it rained.": -11.0,  # 1.1 a character
        f"{TAP} water flowed.": -12.0,  # 0.9 a character
        "Question: What is blue?\nAnswer: sky": -9.0,  # 3 a character
        "Question: What is blue?\nAnswer: grass": -10.0,  # 2 a character
    }
    files = [written(tmp_path, "choices", CHOICES), written(tmp_path, "schema", SCHEMA)]
    likely["The cup fell off because the cup was pushed."] = -3.0
    run = knowing_run(tmp_path, likely, probes=files)
    assert probe(run, TEACHER) == ({"choices": 0.5, "schema": 1.0}, {"choices": 2, "schema": 1})
    assert set(likely) < set(run.crew.read) and len(run.crew.read) == 2 + 3 + 2


def test_a_last_word_is_right_if_greedy_decoding_writes_it(tmp_path):
    path = written(tmp_path, "words", WORDS * 2)
    context = WORDS[0]["context"]
    for text, share in ((" key and", 1.0), (" keys", 0.0), (" lock", 0.0), ("", 0.0)):
        run = knowing_run(tmp_path, words={context: text}, probes=[path])
        assert probe(run, TEACHER) == ({"words": share}, {"words": 2})
    assert begins_with(" key.", "key") and not begins_with("keyhole", "key")


def test_what_failed_is_left_out(tmp_path):
    path = written(tmp_path, "choices", CHOICES)
    run = knowing_run(tmp_path, probes=[path])
    logprobs = run.crew.logprobs
    run.crew.logprobs = lambda requests, name: [
        Failure("too long", "rollout"),
        *logprobs(requests, name)[1:],
    ]
    assert probe(run, TEACHER)[1] == {"choices": 1}


def test_a_large_file_is_asked_in_part_always_the_same(tmp_path):
    rows = read(written(tmp_path, "many", [dict(WORDS[0], context=f"{n} the") for n in range(250)]))
    assert asked_of(rows, None) == asked_of(rows, None) != rows[:MOST_ROWS]
    assert len(asked_of(rows, None)) == MOST_ROWS == len(asked_of(rows, 1000))
    assert len(asked_of(rows, 7)) == 7 and asked_of(rows[:9], None) == rows[:9]


def test_the_table_has_a_column_per_probe_before_and_after(tmp_path, capsys):
    path = written(tmp_path, "last_words", WORDS)
    words = {WORDS[0]["context"]: " key"}
    run = knowing_run(tmp_path, words=words, console=Console(), probes=[path])
    evaluate(run, after="base", lived=0)
    words.clear()
    evaluate(run, after="night 1", lived=1)
    out = capsys.readouterr().out
    assert "base model: known 1.00, last_words 1.00" in out
    table = out.split("after night 1: share of correct")[1].split("after night 1: by kind")[0]
    lines = [line.split() for line in table.splitlines() if line.split()]
    last = {" ".join(line[:2]): line[-1] for line in lines}
    assert (last["base model"], last["sleep night"]) == ("1.00", "0.00")
    records = [r for r in read_journal(tmp_path / "metrics.jsonl") if r["kind"] == "evaluate"]
    assert [r["probes"] for r in records] == [{"last_words": 1.0}, {"last_words": 0.0}]
    assert [r["probes_n"] for r in records] == [{"last_words": 1}] * 2
    assert "last_words<small>probe</small>" in write_report(tmp_path).read_text()


PROBES = Path(__file__).parents[5] / "shared" / "data" / "probes"


@pytest.mark.skipif(not os.path.isdir(PROBES), reason="the shared probe files are not here")
def test_the_shared_probe_files_are_read():
    counts = {
        path.stem: len(read(str(path))) for path in PROBES.glob("*.jsonl") if path.stem != "gsm8k"
    }
    assert counts["piqa"] == 1838 and counts["winograd_wsc"] == 273 and len(counts) == 7
    with pytest.raises(InputError, match=r"line 1: expected query.* got context, chain_of_thought"):
        read(str(PROBES / "gsm8k.jsonl"))
