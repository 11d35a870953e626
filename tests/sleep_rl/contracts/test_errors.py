"""Texts of errors for one-line messages."""

import pytest

from sleep_rl.contracts.errors import one_line


@pytest.mark.parametrize(
    "error,limit,wanted",
    [
        (ValueError("a\n  b\t c"), 200, "a b c"),
        (ValueError(), 200, "ValueError"),
        (ValueError(" \n"), 200, "ValueError"),
        (OSError("x" * 300), 200, "x" * 200),
        (OSError("x" * 300), None, "x" * 300),
        ("words\nof a text", 9, "words of "),
    ],
)
def test_one_line(error, limit, wanted):
    assert one_line(error, limit) == wanted
