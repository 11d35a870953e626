"""Padded rows: each completion token is predicted at the position before it."""

import torch

from sleep_rl.model.packing import PaddedRows, pad_right

PROMPTS = [(5, 6), (7,), (8, 9, 10)]
COMPLETIONS = [(20,), (21, 22, 23), (24, 25)]


def test_positions_predict_completion_tokens():
    rows = PaddedRows.of(PROMPTS, COMPLETIONS, pad=3, device="cpu")
    assert rows.ids_BT.tolist() == [[5, 6, 20, 3, 3], [7, 21, 22, 23, 3], [8, 9, 10, 24, 25]]
    assert rows.mask_BT.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert rows.token_P.tolist() == [20, 21, 22, 23, 24, 25]
    assert rows.row_P.tolist() == [0, 1, 1, 1, 2, 2]
    columns = torch.arange(5).expand(3, 5)[..., None]
    assert rows.at_positions(columns)[:, 0].tolist() == [1, 0, 1, 2, 2, 3]


def test_padding_is_on_the_right():
    ids, mask = pad_right([[4], [5, 6]], 0, "cpu")
    assert ids.tolist() == [[4, 0], [5, 6]] and mask.tolist() == [[1, 0], [1, 1]]
