"""Templates and static files of the pages, from package data. Values inserted into a template are
escaped, unless they are Markup.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

REPORT = "sleep_rl.report"


def render(template: str, package: str = REPORT, **values: object) -> Markup:
    """Return the template `package/templates/<template>` as HTML."""
    return Markup(_environment(package).get_template(template).render(values))


def static(name: str, package: str = REPORT) -> Markup:
    """Return the text of `package/static/<name>`, to be inserted without escaping."""
    return Markup((files(package) / "static" / name).read_text(encoding="utf-8"))


@cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shorten"] = shorten
    environment.filters["accuracy"] = "{:.2f}".format
    environment.filters["thousands"] = "{:,}".format
    return environment


def shorten(value: object, most: int = 300) -> str:
    """Strip the text and cut it to `most` characters."""
    text = str(value).strip()
    return text if len(text) <= most else text[:most] + " …"
