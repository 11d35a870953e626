"""Templates and static files: package data, escaping."""

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from sleep_rl.report.templates import render, shorten, static

ROOT = Path(__file__).parents[3]


def test_templates_and_static_files_are_package_data():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = [*(ROOT / "sleep_rl").rglob("templates"), *(ROOT / "sleep_rl").rglob("static")]
    files = [file for folder in folders for file in folder.iterdir()]
    assert len(files) > 8
    for file in files:
        package = ".".join(file.parents[1].relative_to(ROOT).parts)
        patterns = declared["package-data"].get(package, [])
        name = str(file.relative_to(file.parents[1]))
        assert any(fnmatch(name, pattern) for pattern in patterns), file


def test_values_are_escaped_unless_markup():
    rows = [("<b>", Markup("<i>"), 1)]
    html = render("failures.html", rows=rows)
    assert "&lt;b&gt;" in html and "<b>" not in html
    assert "<td>&lt;i&gt;</td>" in html  # shortened, it is text again
    assert "</style" not in static("report.css")


def test_a_missing_value_is_an_error():
    with pytest.raises(UndefinedError):
        render("failures.html")


def test_long_texts_are_shortened():
    assert shorten(" a\n") == "a" and shorten("x" * 301) == "x" * 300 + " …"
