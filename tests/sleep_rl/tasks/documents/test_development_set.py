"""The development set, on which recipe settings are chosen: it shares nothing that can be learned
with configs/example, on which results are reported.
"""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
EXAMPLE = ROOT / "configs" / "example"
DEVELOPMENT = ROOT / "benchmarks" / "development"


def questions(folder):
    lines = [line for path in sorted(folder.rglob("*.jsonl")) for line in path.open()]
    return [json.loads(line) for line in lines]


def told(folder):
    return "\n".join(path.read_text() for path in sorted(folder.rglob("*.md")))


def test_no_question_number_or_name_is_in_both_sets():
    asked = [{row["question"] for row in questions(each)} for each in (EXAMPLE, DEVELOPMENT)]
    assert all(len(each) > 90 for each in asked) and not asked[0] & asked[1]
    for pattern in (r"\d+", r"(?:[A-Z]\w+ )+[A-Z]\w+"):
        found = [set(re.findall(pattern, told(each))) for each in (EXAMPLE, DEVELOPMENT)]
        assert all(len(each) > 20 for each in found)
        assert not found[0] & found[1]


@pytest.mark.parametrize("day", ["day1", "day2"])
def test_answers_stand_in_their_documents_and_choices_are_others(day):
    rows = [row for row in questions(DEVELOPMENT / day) if row.get("answer")]
    assert len(rows) > 50
    for row in rows:
        document = (DEVELOPMENT / day / row["document"]).read_text()
        assert row["answer"].lower() in document.lower(), row
        assert row["answer"] not in row["choices"] and len(set(row["choices"])) == 3
