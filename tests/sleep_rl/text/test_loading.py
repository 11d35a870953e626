"""End tokens of a checkpoint: of generation_config, of config, and damaged ones."""

import json
from pathlib import Path

import pytest

from sleep_rl.contracts.errors import InputError
from sleep_rl.text.loading import end_tokens


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
