"""A custom task, reward and model family in a temporary folder, as in docs/extending.md."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from actors.custom_reward import CustomReward
from sleep_rl.cli.main import main
from sleep_rl.contracts.errors import Failure, InputError
from sleep_rl.contracts.records import Pair
from sleep_rl.journal.journal import read
from sleep_rl.tasks.plugin import instantiate, load_class
from sleep_rl.tasks.registry import TASK_MEMBERS
from sleep_rl.tasks.small_base import word_tokenizer
from sleep_rl.tasks.world.task import World
from tests.fakes.processes import LIMIT_S

pytestmark = pytest.mark.stack  # processes that import the whole package

ROOT = Path(__file__).parents[2]
TASK = '''
from sleep_rl.contracts.records import Day, Document, Question, TrainingText


class Moves:
    """People move; two days. The base is the demo's, whose words these are."""

    name, opener, marker = "moves", "Q :", "A :"
    max_new_tokens, max_answer_tokens = 12, 2

    def __init__(self, moves):
        self._days = tuple(
            Day(f"day{n}", (Document(f"d{n}", f"{who} moved to {where} ."),),
                (Question(f"q{n}", f"Q : where does {who} live ? A :", where, f"d{n}"),))
            for n, (who, where) in enumerate(moves.items(), start=1))

    def days(self):
        return self._days

    def known(self):
        return ()

    def grade(self, question, text):
        return float(text.split()[:1] == [question.answer])

    def sft_texts(self, day):
        return tuple(TrainingText("", d.text) for d in day.documents)

    def joint_texts(self):
        questions = [q for day in self._days for q in day.questions]
        return tuple(TrainingText(q.prompt, f" {q.answer}") for q in questions)

    def base_checkpoint(self, cache, seed, progress):
        raise NotImplementedError("model.base names it")
'''
REWARD = '''
class SharedWords:
    """Share of the teacher's words that the student wrote, too."""

    def score(self, texts_N):
        return [len(set(s.split()) & set(t.split())) / len(set(t.split())) for s, t in texts_N]


class Broken:
    def score(self, texts_N):
        return [3.0] * len(texts_N)


class Raises:
    def score(self, texts_N):
        raise ValueError("no\\nnetwork")


class Short:
    def score(self, texts_N):
        return []
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "moves.py").write_text(TASK)
    (tmp_path / "shared.py").write_text(REWARD)
    return tmp_path


def test_load_class_by_module_or_file(folder, monkeypatch):
    assert load_class(f"{folder}/moves.py:Moves", "key").__name__ == "Moves"
    monkeypatch.syspath_prepend(str(folder))
    assert load_class("shared:SharedWords", "key").__name__ == "SharedWords"
    task = instantiate(
        f"{folder}/moves.py:Moves", {"moves": {"ada olsen": "oslo"}}, "key", ("days",)
    )
    assert task.days()[0].documents[0].text == "ada olsen moved to oslo ."


@pytest.mark.parametrize(
    "target, options, line",
    [
        ("moves", {}, "key: module:Class or path/to/file.py:Class, got moves"),
        (
            "{folder}/none.py:X",
            {},
            "key: {folder}/none.py cannot be imported: FileNotFoundError: no such file",
        ),
        (
            "no_such_module_here:X",
            {},
            "key: no_such_module_here cannot be imported: ModuleNotFoundError: ",
        ),
        ("{folder}/moves.py:Nothing", {}, "key: a class Nothing in {folder}/moves.py, got none"),
        (
            "{folder}/moves.py:Moves",
            {},
            "key: {folder}/moves.py:Moves cannot be created with {{}}: TypeError: ",
        ),
        (
            "{folder}/shared.py:SharedWords",
            {},
            "key: a class with days, score, got {folder}/shared.py:SharedWords without days",
        ),
    ],
)
def test_invalid_class_gives_one_line_error(folder, target, options, line):
    with pytest.raises(InputError) as error:
        instantiate(target.format(folder=folder), options, "key", ("days", "score"))
    assert str(error.value).startswith(line.format(folder=folder)) and "\n" not in str(error.value)


def test_custom_reward_gets_texts_and_returns_numbers(folder, tmp_path):
    tokenizer = word_tokenizer(["we", "live", "here", "there"])
    tokenizer.save_pretrained(tmp_path / "words")

    def ids(text):
        return tuple(tokenizer(text)["input_ids"])

    pairs = [
        Pair(ids("we live"), ids("we live here there")),
        Pair((), ids("we")),
        Pair(ids("here"), ids("here")),
    ]

    def score(name):
        return CustomReward(f"{folder}/shared.py:{name}", {}, str(tmp_path / "words")).score(pairs)

    first, empty, last = score("SharedWords")
    assert (first, last) == (0.5, 1.0) and isinstance(empty, Failure) and "no text" in empty.reason
    reasons = {name: score(name)[0].reason for name in ("Broken", "Raises", "Short")}
    assert reasons["Broken"].endswith(
        "shared.py:Broken returned 3.0, allowed is a number from 0 to 1"
    )
    assert reasons["Raises"].endswith("shared.py:Raises raised ValueError: no network")
    assert reasons["Short"].endswith("shared.py:Short returned 0 values for 2 pairs")


@pytest.mark.parametrize(
    "keys, line",
    [
        (
            ["task.name=custom"],
            "task.custom.target: with task.name custom, and only with it, got null with custom",
        ),
        (
            ["reward.semantic=custom"],
            "reward.target: with reward.semantic custom, and only with it, got null with custom",
        ),
        (
            ["reward.target=a:B"],
            "reward.target: with reward.semantic custom, and only with it, got a:B with none",
        ),
        (
            ["task.name=custom", "task.custom.target=a:B"],
            "model.base: a language model is needed for task custom",
        ),
        (
            ["reward.semantic=custom", "reward.target=no_such_module:B"],
            "reward.target: no_such_module cannot be imported",
        ),
    ],
)
def test_invalid_config_gives_one_line_error(capsys, keys, line):
    assert main(["plan", str(ROOT / "configs" / "debug.yaml"), *keys]) == 2
    assert line in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.stack
def test_run_with_custom_task_and_reward(folder):
    base = World(0).base_checkpoint(str(ROOT / "cache"), 0, None)
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "OMP_", "TORCHDYNAMO"))
    }
    life = [
        "run",
        "configs/debug.yaml",
        "cluster.backend=local",
        f"run.dir={folder}",
        "run.name=moves",
        f"model.base={base}",
        "task.name=custom",
        "task.days=null",
        f"task.custom.target={folder}/moves.py:Moves",
        "task.custom.options={moves: {ada olsen: oslo, mira berg: lima}}",
        "reward.semantic=custom",
        f"reward.target={folder}/shared.py:SharedWords",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "sleep_rl", *life],
        cwd=ROOT,
        env=environment,
        text=True,
        timeout=LIMIT_S,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    records = read(folder / "moves" / "metrics.jsonl")
    assert [sorted(r["row"]) for r in records if r["kind"] == "evaluate" and r["row"]] == [
        ["day1"],
        ["day1", "day2"],
    ]
    assert all(0 <= r["reward_sem"] <= 1 for r in records if r["kind"] == "seed")
    wrong = subprocess.run(
        [sys.executable, "-m", "sleep_rl", *life, "model.experts=1"],
        cwd=ROOT,
        env=environment,
        text=True,
        timeout=LIMIT_S,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert wrong.returncode == 2
    assert "model.experts: at least 2, which level 1 needs until it is reset" in wrong.stdout


def block(name):
    """The code of docs/extending.md that begins with a comment naming its file."""
    page = (ROOT / "docs" / "extending.md").read_text()
    [code] = re.findall(rf"```python\n(# {name}\n.*?)```", page, re.S)
    return code


def test_task_and_reward_of_the_documentation_run(tmp_path):
    for name in ("moves.py", "shared.py"):
        (tmp_path / name).write_text(block(name))
    options = {"moves": {"Ada": "Oslo", "Mira": "Lima"}}
    task = instantiate(f"{tmp_path}/moves.py:Moves", options, "key", TASK_MEMBERS)
    first, _ = task.days()
    assert task.sft_texts(first)[0].completion == "Ada moved to Oslo."
    assert [text.completion for text in task.joint_texts()] == [" Oslo", " Lima"]
    assert task.grade(first.questions[0], " Oslo\nmore") == 1.0 and task.known() == ()
    reward = instantiate(f"{tmp_path}/shared.py:SharedWords", {}, "key", ("score",))
    assert reward.score([("a b", "b c")]) == [0.5]


def test_custom_task_needs_every_member():
    assert {"name", "opener", "marker", "max_new_tokens", "max_answer_tokens"} < set(TASK_MEMBERS)
    assert {"days", "known", "grade", "sft_texts", "joint_texts"} < set(TASK_MEMBERS)
    assert len(TASK_MEMBERS) == 11 and "base_checkpoint" in TASK_MEMBERS


BASELINE = """
import types
from sleep_rl.config.loader import load
from sleep_rl.driver.baselines import newest_day, registry
config = load("configs/debug.yaml", ["baselines.run=[newest_day]"])
registry.check(config)
print("newest_day" in registry.names(), registry.planned_steps(config, 3))
calls = []
learn = types.SimpleNamespace(load_state=lambda tag: calls.append(("load", tag)))
crew = types.SimpleNamespace(learn=learn, push=lambda name, view: calls.append(("push", name)))
newest_day.train = lambda run, name, day, texts, steps: calls.append((name, day, texts, steps))
newest_day.evaluate = lambda run, **how: calls.append(how["method"])
task = types.SimpleNamespace(sft_texts=lambda day: ("text",))
run = types.SimpleNamespace(crew=crew, task=task)
newest_day.after_night(run, types.SimpleNamespace(name="day2"), 2, 7)
print(calls)
"""


def test_baseline_of_the_documentation_is_one_module(tmp_path):
    for folder in ("sleep_rl", "configs"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    file = tmp_path / "sleep_rl" / "driver" / "baselines" / "newest_day.py"
    file.write_text(block("newest_day.py"))
    done = subprocess.run(
        [sys.executable, "-c", BASELINE],
        cwd=tmp_path,
        text=True,
        timeout=LIMIT_S,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout.splitlines() == [
        "True {'newest_day': 300}",
        "[('load', 'base'), ('newest_day', 'day2', ['text'], 7), ('push', 'newest_day'), "
        "'newest_day']",
    ], done.stderr


FAMILY = """
import json, sys, torch, transformers
sys.path.insert(0, ".")
from sleep_rl.model import checkpoints, shape
assert checkpoints.__file__.startswith({here!r}), checkpoints.__file__
config = transformers.MistralConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=64,
)
torch.manual_seed(0)
base = transformers.MistralForCausalLM(config).eval()
base.save_pretrained("base")
out = checkpoints.expand("base", "sleep", [{{"experts": 2, "d_low": 4, "top_k": 1}}])
model = checkpoints.load(out)
ids = torch.arange(20)[None]
with torch.no_grad():
    assert torch.equal(model(ids).logits, base(ids).logits)  # locked memory computes nothing
parsed = shape.parse_shape(json.load(open("base/config.json")), "x")
print(type(model).__name__, parsed.parameters == sum(p.numel() for p in base.parameters()))
"""


def test_model_family_is_one_row(tmp_path):
    for package in ("sleep_rl", "actors"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    file = tmp_path / "sleep_rl/model/families.py"
    row = '"llama": "Llama"'
    assert file.read_text().count(row) == 1
    file.write_text(file.read_text().replace(row, f'{row}, "mistral": "Mistral"'))
    done = subprocess.run(
        [sys.executable, "-c", FAMILY.format(here=str(tmp_path))],
        cwd=tmp_path,
        text=True,
        timeout=LIMIT_S,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (
        done.returncode == 0 and done.stdout.splitlines()[-1] == "SleepMistralForCausalLM True"
    ), done.stdout
