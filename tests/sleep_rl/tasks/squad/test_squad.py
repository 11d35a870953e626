"""SEAL's protocol on passages: datasets, questions, lessons of dreams, grades."""

import json
from pathlib import Path

import pytest
import torch

from sleep_rl.contracts.errors import Failure, InputError
from sleep_rl.contracts.records import TrainingText
from sleep_rl.contracts.roles import Dreamer
from sleep_rl.tasks.grading import RecallGrader
from sleep_rl.tasks.squad.base_model import Recipe, base_batches, model_config, train_tokenizer
from sleep_rl.tasks.squad.dataset import DREAM, MARKER, OPENER, read_passages
from sleep_rl.tasks.squad.task import Squad
from sleep_rl.text.codec import PromptCodec

SEAL = Path(__file__).parents[5] / "shared" / "data" / "squad_seal" / "iter0_train_100x10.json"
ROWS = [
    {
        "title": f"Place {n}",
        "context": f"Place {n} lies in Land {n}. Its river is the R{n}.",
        "questions": [
            {"question": f"Where lies Place {n}?", "answer": f"Land {n}"},
            {"question": "Which river?", "answer": f"R{n}"},
        ],
        "completions": [f"1. Land {n} has a place.\n2. A river runs there."],
    }
    for n in range(8)
]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "passages.json"
    file.write_text(json.dumps(ROWS))
    return str(file)


def test_days_have_passages_and_closed_book_questions(path):
    task = Squad(path, days=2, passages_per_day=3)
    assert isinstance(task, Dreamer) and [len(d.documents) for d in task.days()] == [3, 3]
    days = task.days()
    titles = [d.text.split("\n")[0] for day in days for d in day.documents]
    # shuffled by SEAL's seed
    assert len(set(titles)) == 6 and titles != [r["title"] for r in ROWS[:6]]
    question = days[0].questions[0]
    title, context = days[0].documents[0].text.split("\n")
    assert question.prompt.startswith(f"Topic: {title}{OPENER} ") and question.prompt.endswith(
        MARKER
    )
    assert context not in question.prompt and question.document == days[0].documents[0].id
    known = {q.prompt.split("\n")[0] for q in task.known()}
    assert known == {f"Topic: {r['title']}" for r in ROWS} - {f"Topic: {t}" for t in titles}


def test_tau_is_the_mean_grade_of_a_passage(path):
    task = Squad(path, days=2, passages_per_day=3)
    [one, *rest] = task.dream_tasks(task.days()[0])
    assert len(rest) == 2 and len(one.questions) == 2
    right = [q.answer for q in one.questions]
    assert task.tau(one, right) == 1.0 and task.tau(one, ["", ""]) == 0.0
    assert task.tau(one, [f"It is {right[0]}.\nQuestion: more", "no idea"]) == 0.5
    # only the first line is the answer
    assert task.tau(one, [f"no idea\n{right[0]}", right[1]]) == 0.5


@pytest.mark.parametrize(
    "dream,lines",
    [
        ("1. a b\n2. c", ["1. a b", "2. c"]),
        ("Here they are:\n1. a\n2. b", ["1. a", "2. b"]),
        ("x\n\n  y \nx", ["x", "y"]),
        ("- a\n- b", ["- a", "- b"]),
        ("one line", ["one line"]),
    ],
)
def test_lesson_has_dream_lines_with_title_and_passage(path, dream, lines):
    task = Squad(path, days=1, passages_per_day=1)
    [one] = task.dream_tasks(task.days()[0])
    title = one.context.text.split("\n")[0]
    assert task.lesson(one, dream).texts == (
        *(TrainingText("", f"{title}\n{line}") for line in lines),
        TrainingText("", one.context.text),
    )


def test_failed_grade_fails_tau(path):
    task = Squad(path, days=1, passages_per_day=1)
    asked = []

    class Down:
        def grade(self, asked_N):
            asked.append(asked_N)
            return [Failure("the judge cannot be reached", "judge")]

    task.grader = Down()
    [one] = task.dream_tasks(task.days()[0])
    assert (
        task.tau(one, ["a", "b"]) == Failure("the judge cannot be reached", "judge")
        and len(asked) == 1
    )


def test_empty_dream_is_a_failure(path):
    task = Squad(path, days=1, passages_per_day=1)
    [one] = task.dream_tasks(task.days()[0])
    assert task.lesson(one, " \n\n") == Failure("empty text", "dream")


def test_squad_rows_are_grouped_by_passage(tmp_path):
    rows = [
        {"title": "A_B", "context": "c1", "question": "q1", "answers": {"text": ["x", "y"]}},
        {"title": "A_B", "context": "c2", "question": "q2", "answers": {"text": ["", "z"]}},
        {"title": "A_B", "context": "c1", "question": "q3", "answers": {"text": ["w"]}},
        {"title": "A_B", "context": "c3", "question": "q4", "answers": {"text": []}},
        {"title": "A_B", "context": "c4", "question": "q5", "answers": {"text": [" "]}},
    ]
    file = tmp_path / "squad.json"
    file.write_text(json.dumps(rows))
    found = read_passages(str(file))
    assert [(p.title, p.context, p.asked) for p in found] == [
        ("A B", "c1", (("q1", "x"), ("q3", "w"))),
        ("A B", "c2", (("q2", "z"),)),
    ]


@pytest.mark.parametrize(
    "content,line",
    [
        (b"", "the file is empty"),
        (b"\xff\xfe", "another encoding at byte 0"),
        (b"[]", "no passage with a question"),
        (b'{"a": 1}', "a json of passages"),
        (b'[{"title": "t"}]', "answers"),
    ],
)
def test_invalid_files_give_one_line_errors(tmp_path, content, line):
    file = tmp_path / "p.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=line) as caught:
        read_passages(str(file))
    assert len(str(caught.value).splitlines()) == 1 and str(caught.value).startswith(
        "task.squad.path: a json of passages"
    )


def test_invalid_counts_are_refused(path):
    with pytest.raises(
        InputError, match=r"task.days \* task.squad.passages_per_day is at most 8, .* got 10"
    ):
        Squad(path, days=2, passages_per_day=5)
    with pytest.raises(InputError, match=r"task.base_text: passages to train the base on"):
        Squad(path, days=1, passages_per_day=8).base_checkpoint(".", 0, None)


def test_answers_are_graded_by_the_judge_at_an_endpoint_or_by_recall(path):
    def squad(**judge):
        return Squad(path, days=1, passages_per_day=1, **judge)

    assert isinstance(squad().grader, RecallGrader)
    assert squad(judge_endpoint="http://x/v1", judge_model="m").grader.name == "judge:m"
    for judge, got in (
        ({"judge_endpoint": "http://x/v1"}, "null with http://x/v1"),
        ({"judge_model": "m"}, "m with null"),
    ):
        with pytest.raises(InputError) as caught:
            squad(**judge)
        assert str(caught.value) == (
            f"task.squad.judge_model: with task.squad.judge_endpoint, and only with it, got {got}"
        )
    with pytest.raises(
        InputError, match=r"task.squad.judge_endpoint: an address that begins with http"
    ):
        squad(judge_endpoint="localhost 80", judge_model="m")


def test_base_sequences_of_passages_questions_and_dreams(path):
    passages = read_passages(path)
    recipe = Recipe(vocabulary=300)
    tokenizer = train_tokenizer([p.text for p in passages], recipe.vocabulary)
    batches = base_batches(passages, tokenizer, recipe, 0)
    seen = {"dream": 0, "closed": 0, "behind": 0}
    for step in range(30):
        ids, weights = batches(step)
        again, _ = batches(step)
        assert torch.equal(ids, again) and ids.shape == weights.shape and len(ids) == recipe.batch
        for row, weight in zip(ids.tolist(), weights.tolist(), strict=True):
            text = tokenizer.decode(row)
            kind = "closed" if "Topic:" in text else "behind"
            if DREAM in text:
                kind = "dream"
            seen[kind] += 1
            assert (
                "<eos>" in text
                and weight[0] == 0.0
                and max(weight) == (1.0 if kind == "dream" else 3.0)
            )
    assert all(count > 10 for count in seen.values()), seen
    assert model_config(recipe, tokenizer).vocab_size == len(tokenizer)
    texts = PromptCodec(Squad(path, days=1, passages_per_day=1), tokenizer)
    asked = Squad(path, days=1, passages_per_day=1).days()[0].questions[0]
    whole = texts.ids(asked.prompt + f" {asked.answer}")
    # pieces give the ids of the whole
    assert texts.question(asked) + texts.ids(f" {asked.answer}") == whole


@pytest.mark.skipif(not SEAL.is_file(), reason="SEAL's passages are not beside this checkout")
def test_seal_passages():
    passages = read_passages(str(SEAL))
    assert (
        len(passages) == 100
        and sum(len(p.asked) for p in passages) == 467
        and all(len(p.dreams) == 10 for p in passages)
    )
    task = Squad(str(SEAL), days=2, passages_per_day=10)
    for day in task.days():
        for one in task.dream_tasks(day):
            lesson = task.lesson(one, "1. first\n2. second")
            assert len(lesson.texts) == 3 and one.questions
