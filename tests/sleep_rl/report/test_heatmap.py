"""The retention matrix as an image: colours and numbers of the cells."""

import io

import pytest
from PIL import Image

from sleep_rl.journal.retention import Retention
from sleep_rl.journal.schema import parse
from sleep_rl.report.colours import COLOURS, FUTURE, colours_of, shade
from sleep_rl.report.heatmap import png

NIGHTS = {
    "base": {"known": 1.0, "day 1": 0.0},
    "night 1": {"known": 0.75, "day 1": 0.5},
    "night 2": {"known": 0.25, "day 2": 1.0},
}


def retention(*methods):
    return Retention.of(
        parse(
            {
                "t": t,
                "kind": "evaluate",
                "after": after,
                "method": method,
                "row": row,
                "open_book": None,
            }
        )
        for t, (after, row) in enumerate(NIGHTS.items())
        for method in methods
    )


def colours(picture):
    with Image.open(io.BytesIO(picture)) as image:
        image = image.convert("RGB")
        return {
            "#{:02x}{:02x}{:02x}".format(*colour): count
            for count, colour in image.getcolors(1 << 24)
        }, image.size


def test_rows_and_columns():
    rows = retention("sleep").history("sleep")
    assert [(row.after, [cell.value for cell in row.cells]) for row in rows] == [
        ("base", [1.0, 0.0, None]),
        ("night 1", [0.75, 0.5, None]),
        ("night 2", [0.25, None, 1.0]),
    ]


def test_each_method_has_a_colour_of_its_own():
    found = colours_of(["sleep", "newest_day", "sft", "oldest_day"])
    assert found.items() >= COLOURS.items() and {"newest_day", "oldest_day"} <= found.keys()
    assert len(set(found.values())) == len(found)


def test_colours_of_cells():
    found, _ = colours(png(retention("sleep")))
    cell = found[shade(0.75)]
    assert cell > 500
    assert {value: round(found.get(shade(value), 0) / cell) for value in (1.0, 0.25, 0.5, 0.0)} == {
        1.0: 2,
        0.25: 1,
        0.5: 1,
        0.0: 0,
    }
    # base of day 1; day 2 twice; day 1 was not asked after night 2
    assert found[FUTURE] / cell == pytest.approx(4, abs=0.5)


def test_one_panel_per_method():
    one = colours(png(retention("sleep")))[1]
    two = colours(png(retention("sleep", "sft")))[1]
    assert two[0] == 2 * one[0] and two[1] == one[1]


def test_image_size_is_bounded():
    days = [f"day {n}" for n in range(1, 61)]
    records = [
        {
            "t": n,
            "kind": "evaluate",
            "after": f"night {n}",
            "method": "sleep",
            "open_book": None,
            "row": dict.fromkeys(days[:n], 0.5),
        }
        for n in range(1, 61)
    ]
    assert max(colours(png(Retention.of(map(parse, records))))[1]) < 2000
