"""ARC in SEAL's protocol: grids, augmentations, recipes, sub-puzzles, votes."""

import json
import random
from pathlib import Path

import pytest

from sleep_rl.contracts.errors import Failure, InputError
from sleep_rl.contracts.roles import Dreamer
from sleep_rl.tasks.arc.grids import TURNS, View, augmentations, parse, random_view, render
from sleep_rl.tasks.arc.puzzles import MARKER, OPENER, read_puzzles
from sleep_rl.tasks.arc.recipe import MOST_TEXTS, FineTuningRecipe, sub_puzzles
from sleep_rl.tasks.arc.task import MOST_STEPS, Arc

DATA = Path(__file__).parents[5] / "shared" / "data" / "arc_seal"
GRID = ((1, 2, 3), (4, 5, 6))
RECIPE = {
    "use_basic_augmentations": False,
    "use_size_augmentations": False,
    "use_chain_augmentations": False,
    "use_repeat_augmentations": False,
    "strategy": "train_using_output_tokens",
    "learning_rate": 1e-4,
    "num_train_epochs": 2,
}


def puzzle(n, tests=1):
    pairs = [{"input": [[n, i], [i, 0]], "output": [[i, n], [0, i]]} for i in range(1, 4)]
    asked = [{"input": [[n, 5 + t], [5 + t, 0]]} for t in range(tests)]
    return {"train": pairs, "test": asked}, [[[5 + t, n], [0, 5 + t]] for t in range(tests)]


def write(folder, prefix="", suffix="", names=("p1", "p2", "p3", "p4")):
    made = {name: puzzle(n, tests=1 + n % 2) for n, name in enumerate(names, start=1)}
    for part, what in enumerate(("challenges", "solutions")):
        content = {name: both[part] for name, both in made.items()}
        (folder / f"{prefix}{what}{suffix}.json").write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path)
    return str(tmp_path)


@pytest.fixture
def task(folder):
    return Arc(folder, days=2, puzzles_per_day=2)


def test_grid_text_round_trip():
    assert render(GRID) == "1 2 3\n4 5 6" and parse(render(GRID)) == GRID
    assert parse("1 2 3\n4 5 6\n\nInput:\n7") == GRID
    assert [parse(text) for text in ("", "a b", "1 2\n3", "10 1\n2 3", "x 1", "² 1")] == [None] * 6


def test_transformations():
    made = {
        name: change(GRID)
        for kind in augmentations(random.Random(0)).values()
        for name, change in kind.items()
    }
    assert made["rotate 90"] == ((4, 1), (5, 2), (6, 3)) and made["rotate 180"] == (
        (6, 5, 4),
        (3, 2, 1),
    )
    assert made["rotate 270"] == ((3, 6), (2, 5), (1, 4)) and made["transpose"] == (
        (1, 4),
        (2, 5),
        (3, 6),
    )
    assert made["flip"] == ((4, 5, 6), (1, 2, 3)) and made["mirror"] == ((3, 2, 1), (6, 5, 4))
    assert made["reflect x first"] == ((3, 2, 1, 1, 2, 3), (6, 5, 4, 4, 5, 6)) and made[
        "reflect y last"
    ] == (*GRID, *GRID[::-1])
    assert made["height"] == (GRID[0], GRID[0], GRID[1], GRID[1]) and made["width"][0] == (
        1,
        1,
        2,
        2,
        3,
        3,
    )
    assert made["down"] == GRID + GRID and made["across"][0] == (1, 2, 3, 1, 2, 3)
    assert (
        sorted(c for row in made["shift"] for c in row) == [1, 2, 3, 4, 5, 6]
        and made["shift"] != GRID
    )
    counts = {kind: len(mine) for kind, mine in augmentations(random.Random(0)).items()}
    assert counts == {"basic": 11, "size": 3, "chain": 6, "repeat": 3}


def test_view_is_invertible():
    rng = random.Random(0)
    for turn in ("", *TURNS):
        view = random_view(3, rng, turn)
        assert (
            view.back(view.show(GRID)) == GRID
            and view.colours[0] == 0
            and sorted(view.colours) == list(range(10))
        )
    assert View("rotate 90", tuple(range(10)), (0,)).show(GRID) == ((4, 1), (5, 2), (6, 3))


@pytest.mark.parametrize(
    "change,reason",
    [
        (None, "not a JSON object"),
        ({"strategy": "x"}, "strategy is not one of"),
        ({"strategy": ["train_using_all_tokens"]}, "strategy is not one of"),
        ({"learning_rate": 0}, "learning_rate is not a number"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"num_train_epochs": 1.5}, "num_train_epochs is not an integer"),
        ({"use_size_augmentations": "yes"}, "use_size_augmentations is neither true nor false"),
        ({"num_train_epochs": 1000}, f"steps, more than {MOST_STEPS}"),
    ],
)
def test_invalid_recipe_is_a_failure_with_reason(task, change, reason):
    [one, _] = task.dream_tasks(task.days()[0])
    dream = "no idea" if change is None else json.dumps(RECIPE | change)
    failed = task.lesson(one, dream)
    assert isinstance(failed, Failure) and reason in failed.reason and failed.where == "dream"


def test_sub_puzzles_leave_examples_out(task, folder):
    [one, _] = task.dream_tasks(task.days()[0])
    lesson = task.lesson(one, f"Here: {json.dumps(RECIPE)} and more")
    assert (lesson.lr, lesson.epochs) == (1e-4, 2)
    [first, *_] = read_puzzles(folder)
    plain = lesson.texts
    left = (
        sum(t.prompt.count(OPENER) == 3 for t in plain),
        sum(t.prompt.count(OPENER) == 2 for t in plain),
    )
    # one left out: 3 ways; two: 3 ways x 2 asked; each twice: as it stands and in other colours
    assert left == (6, 12)
    train = {(render(a), render(b)) for a, b in first.train}
    asked = {(t.prompt.split(OPENER)[-1].removesuffix(MARKER), t.completion) for t in plain}
    assert train < asked and not any((render(a), render(b)) in asked for a, b in first.test)
    whole = task.lesson(one, json.dumps(RECIPE | {"strategy": "train_using_all_tokens"})).texts
    assert all(t.prompt == "" for t in whole) and {t.completion for t in whole} == {
        t.prompt + t.completion for t in lesson.texts
    }


def test_families_add_augmentations_up_to_the_limit(folder):
    [first, *_] = read_puzzles(folder)
    sizes = {
        kind: len(sub_puzzles(first, FineTuningRecipe((kind,), False, 1e-4, 1)))
        for kind in ("basic", "size", "chain", "repeat")
    }
    assert all(size > 18 for size in sizes.values()) and sizes["basic"] > sizes["size"]
    everything = sub_puzzles(
        first, FineTuningRecipe(("basic", "size", "chain", "repeat"), False, 1e-4, 1)
    )
    assert 200 < len(everything) <= MOST_TEXTS and everything == sub_puzzles(
        first, FineTuningRecipe(("basic", "size", "chain", "repeat"), False, 1e-4, 1)
    )


def test_tau_requires_every_test_in_two_attempts(task):
    every = [one for day in task.days() for one in task.dream_tasks(day)]
    assert len(every) == 4
    for one in every:
        right = [q.answer for q in one.questions]
        assert task.tau(one, right) == 1.0 and task.tau(one, ["0"] * len(right)) == 0.0
        tests = len(right) // 3
        # two agree on it
        wrong = {i: task._views(task._puzzles[one.id])[i].show(((7, 7), (7, 7))) for i in range(3)}
        voted = [a if i % 3 == 1 else render(wrong[i % 3]) for i, a in enumerate(right)]
        assert task.tau(one, voted) == 1.0, "second attempt"
        assert task.tau(one, ["junk" if i % 3 else a for i, a in enumerate(right)]) == 1.0
        if tests == 2:
            assert task.tau(one, [a if i < 3 else "junk" for i, a in enumerate(right)]) == 0.0
        assert len(right) == 3 * tests


def test_questions_grades_and_missing_base(task):
    assert isinstance(task, Dreamer) and task.known() == ()
    [question, *_] = task.days()[0].questions
    assert question.prompt.endswith(MARKER) and question.prompt.count(OPENER) == 4
    assert (
        task.grade(question, question.answer + "\n\nInput:\n1") == 1.0
        and task.grade(question, "1 2") == 0.0
    )
    assert "use_basic_augmentations" in task.days()[0].documents[0].text
    with pytest.raises(InputError, match="a language model is needed for task arc"):
        task.base_checkpoint(".", 0, None)


def test_a_path_is_a_folder_with_one_pair_of_files_or_a_file_beside_its_solutions(tmp_path):
    write(tmp_path, "arc-agi_training_", names=("a",))
    write(tmp_path, "arc-agi_training_", "_filtered", names=("b",))
    (tmp_path / "arc-agi_test_challenges.json").write_text("{}")  # ARC's, without solutions
    for path, name in (
        (tmp_path, "a"),
        (tmp_path / "arc-agi_training_challenges.json", "a"),
        (tmp_path / "arc-agi_training_challenges_filtered.json", "b"),
    ):
        assert [puzzle.id for puzzle in read_puzzles(str(path))] == [name]
    (tmp_path / "challenges").mkdir()
    write(tmp_path / "challenges", names=("c",))
    [only] = read_puzzles(str(tmp_path / "challenges" / "challenges.json"))
    assert only.id == "c", "the name of the file alone is changed"


def test_missing_and_ambiguous_files_give_one_line_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "a_challenges.json").write_text("{}")
    (tmp_path / "both").mkdir()
    write(tmp_path / "both", "training_")
    write(tmp_path / "both", "evaluation_")
    allowed = (
        "task.arc.path: a folder with one pair of files ...challenges.json and ...solutions.json, "
        "or such a file of challenges beside its solutions, got "
    )
    for path, reason in (
        ("empty", "it holds no such pair"),
        ("alone", "it holds no such pair"),
        ("both", "it holds evaluation_challenges.json and training_challenges.json"),
        ("none", "no such file or folder"),
        ("both/none_challenges.json", "no such file or folder"),
        ("both/training_solutions.json", "its name lacks challenges"),
        ("alone/a_challenges.json", f"{tmp_path}/alone/a_solutions.json is missing"),
    ):
        with pytest.raises(InputError) as caught:
            Arc(str(tmp_path / path))
        assert str(caught.value) == f"{allowed}{tmp_path / path}: {reason}"


def test_invalid_files_give_one_line_errors(tmp_path, folder):
    for content in (
        "",
        "[]",
        '{"a": {"train": [{"input": [[1], [1, 2]], "output": [[1]]}], "test": []}}',
        '{"p1": 3}',
    ):
        bad = tmp_path / "bad_challenges.json"
        bad.write_text(content)
        (tmp_path / "bad_solutions.json").write_text('{"a": [], "p1": []}')
        with pytest.raises(InputError, match=r"^task.arc.path: ARC's challenges") as caught:
            Arc(str(bad))
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(InputError, match=r"is at most 4, the puzzles with solutions in .*, got 10"):
        Arc(f"{folder}/challenges.json", days=2, puzzles_per_day=5)


@pytest.mark.skipif(not DATA.is_dir(), reason="ARC's puzzles are not beside this checkout")
def test_seal_training_puzzles():
    file = DATA / "arc-agi_training_challenges_filtered_1B_training_set.json"
    task = Arc(str(file), puzzles_per_day=11)
    [day] = task.days()
    every = task.dream_tasks(day)
    assert len(every) == 11
    for one in every:
        lesson = task.lesson(
            one, json.dumps(RECIPE | {"use_basic_augmentations": True, "num_train_epochs": 1})
        )
        assert (
            0 < len(lesson.texts) <= MOST_TEXTS
            and task.tau(one, [q.answer for q in one.questions]) == 1.0
        )
