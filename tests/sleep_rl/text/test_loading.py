"""End tokens of a checkpoint: of generation_config, of config, and damaged ones."""

import json
from pathlib import Path

import pytest

from sleep_rl.contracts.errors import InputError
from sleep_rl.text.codec import PromptCodec
from sleep_rl.text.loading import end_tokens, serving_ends, write_serving_ends
from tests.fakes.texts import Natural
from tests.fakes.tokenizers import chat_tokenizer


@pytest.mark.parametrize(
    "content, ends",
    [
        ({"eos_token_id": [7, 9]}, (7, 9)),
        ({"eos_token_id": 7}, (7,)),
        ({"eos_token_id": None}, ()),
        ({}, None),
        (None, None),
    ],
)
def test_end_tokens_are_those_of_generation_config_else_of_config(
    base_checkpoint, tmp_path, content, ends
):
    folder = tmp_path / "base"
    folder.mkdir()
    config = json.loads(Path(base_checkpoint(), "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": 5}))
    if content is not None:
        (folder / "generation_config.json").write_text(json.dumps(content))
    assert end_tokens(str(folder)) == ((5,) if ends is None else ends)


@pytest.mark.parametrize("content", ["12", "{", '{"eos_token_id": "x"}', '{"eos_token_id": [-1]}'])
def test_a_damaged_generation_config_is_one_line(base_checkpoint, tmp_path, content):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(Path(base_checkpoint(), "config.json").read_text())
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(InputError, match=r"generation_config\.json") as error:
        end_tokens(str(folder))
    assert "\n" not in str(error.value)


def test_servers_also_stop_at_the_end_of_turn_with_which_trained_answers_end(
    base_checkpoint, tmp_path
):
    """As for a base model whose tokenizer has a chat template: its own end is <|endoftext|>."""
    tokenizer = chat_tokenizer()
    config = json.loads(Path(base_checkpoint(), "config.json").read_text())
    (tmp_path / "own.json").write_text(json.dumps({"eos_token_id": 0, "top_p": 0.9}))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").symlink_to(tmp_path / "own.json")
    end = PromptCodec(Natural(), tokenizer).eos[0]
    assert end not in (0, tokenizer.eos_token_id)
    write_serving_ends(str(folder), tokenizer)
    written = json.loads((folder / "generation_config.json").read_text())
    assert written == {"eos_token_id": [0, end], "top_p": 0.9}
    assert serving_ends(str(folder), tokenizer) == (0, end)
    # the file of the base that it was a link to is as before
    assert json.loads((tmp_path / "own.json").read_text())["eos_token_id"] == 0


def test_a_generation_config_with_all_ends_stays_as_it_is(base_checkpoint, tmp_path):
    tokenizer = chat_tokenizer()
    end = PromptCodec(Natural(), tokenizer).eos[0]
    (tmp_path / "config.json").write_text(Path(base_checkpoint(), "config.json").read_text())
    file = tmp_path / "generation_config.json"
    file.write_text(f'{{"eos_token_id":   {end}}}')
    write_serving_ends(str(tmp_path), tokenizer)
    assert file.read_text() == f'{{"eos_token_id":   {end}}}'
