"""`sleep-rl chat`: answers of base and model in two columns."""

import io
import sys
import types

import pytest
import torch
from transformers import AutoModelForCausalLM

from sleep_rl.cli.main import main
from sleep_rl.model import checkpoints
from sleep_rl.model.memory import memory_levels
from sleep_rl.runs.chat import Comparison, side_by_side
from tests.fakes.models import EOS, make_tokenizer

PROMPT = "Is it so?"


def continued(model, ids, most=8):
    """Return the greedy continuation without transformers' generate."""
    out = list(ids)
    with torch.no_grad():
        while len(out) < len(ids) + most and out[-1] != EOS:
            out.append(int(model(torch.tensor([out])).logits[0, -1].argmax()))
    return make_tokenizer().decode(out[len(ids) :], skip_special_tokens=True).strip()


def test_answers_of_base_and_model(base_checkpoint, sleep_checkpoint):
    base = AutoModelForCausalLM.from_pretrained(base_checkpoint()).eval()
    pair = Comparison(sleep_checkpoint(), 8, 0.0, 0)
    model = checkpoints.load(sleep_checkpoint())
    for prompt in (PROMPT, "yes no yes"):
        ids = make_tokenizer()(prompt)["input_ids"]
        before, after = pair.ask(prompt)
        assert (before, after) == (continued(base, ids), continued(model, ids)) and before != after


def test_sampling_is_deterministic_in_seed(sleep_checkpoint):
    first, again, other = (
        Comparison(sleep_checkpoint(), 12, 1.0, seed).ask(PROMPT) for seed in (3, 3, 4)
    )
    assert first == again and first != other


def test_prompts_and_piped_lines_are_answered_in_two_columns(sleep_checkpoint, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    assert (
        main(
            ["chat", sleep_checkpoint(), "--prompt", PROMPT, "--prompt", "no", "--max-tokens", "8"]
        )
        == 0
    )
    from_options = capsys.readouterr().out
    monkeypatch.setattr(
        sys,
        "stdin",
        types.SimpleNamespace(
            buffer=io.BytesIO(f"{PROMPT}\n\n  no\n".encode()), isatty=lambda: False
        ),
    )
    assert main(["chat", sleep_checkpoint(), "--max-tokens", "8"]) == 0
    assert capsys.readouterr().out == from_options
    lines = from_options.splitlines()
    assert [line for line in lines if line.startswith("> ")] == [f"> {PROMPT}", "> no"]
    assert lines[1].split(" | ")[0].strip() == "before the nights" and lines[1].endswith(
        "| with its memory"
    )


def test_typed_lines_and_too_long_prompt(sleep_checkpoint, capsys, monkeypatch):
    typed = iter(["yes " * 300, "no"])

    def read(_):
        for line in typed:
            return line
        raise EOFError

    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", read)
    assert main(["chat", sleep_checkpoint(), "--max-tokens", "2"]) == 0
    out = capsys.readouterr().out
    assert (
        "a prompt of 1 to 255 tokens is needed, got" in out and out.count("before the nights") == 1
    )


def test_chat_template_or_one_bos_token(sleep_checkpoint, tmp_path):
    model = checkpoints.load(sleep_checkpoint())
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[a]{% endif %}"
    )
    checkpoints.save(model, tokenizer, str(tmp_path / "template"))
    assert (
        Comparison(str(tmp_path / "template"), 1, 0.0, 0).ids("no")
        == make_tokenizer()("[user]no[a]")["input_ids"]
    )
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "yes"
    checkpoints.save(model, tokenizer, str(tmp_path / "bos"))
    pair = Comparison(str(tmp_path / "bos"), 1, 0.0, 0)
    assert pair.ids("no") == [tokenizer.bos_token_id, *make_tokenizer()("no")["input_ids"]]
    assert pair.ids("yes no") == make_tokenizer()("yes no")["input_ids"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-tokens", "0"], "--max-tokens >= 1"),
        (["--temperature", "-1"], "--temperature >= 0"),
        (["--prompt", "yes" + 299 * " yes"], "a prompt of 1 to 255 tokens is needed, got 300"),
    ],
)
def test_invalid_arguments_give_one_line_errors(options, said, sleep_checkpoint, capsys):
    assert main(["chat", sleep_checkpoint(), *options]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_plain_base_is_refused(base_checkpoint, capsys):
    assert main(["chat", base_checkpoint(), "--prompt", "no"]) == 2
    assert "a sleep checkpoint is needed" in capsys.readouterr().err


def test_locked_memory_gives_equal_answers(sleep_checkpoint):
    pair = Comparison(sleep_checkpoint("qwen3", "locked"), 8, 0.0, 0)
    assert len(set(pair.ask(PROMPT))) == 1 and len(memory_levels(pair.model)) == 2


def test_width_of_columns():
    assert side_by_side(("a", "b"), ("one two three", ""), 23) == [
        "a       | b",
        "-       | -",
        "one two | (nothing)",
        "three   |",
    ]
    assert side_by_side(("left", "right"), ("x\n\ny", "z"), 80) == [
        "left | right",
        "---- | -----",
        "x    | z",
        "     |",
        "y    |",
    ]
