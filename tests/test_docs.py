"""Paths, names, config keys, commands, make targets, links and messages in README.md and docs/
exist.
"""

import ast
import glob
import importlib
import re
import shlex
from functools import cache
from pathlib import Path

import click
import pytest

from sleep_rl.cli.main import cli
from sleep_rl.config.loader import keys, load
from sleep_rl.contracts.errors import InputError
from tests.fakes.sources import ROOT, nodes, nodes_below

README = "README.md"
GLOSSARY = "docs/glossary.md"
TROUBLESHOOTING = "docs/troubleshooting.md"
PAGES = (README, *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
ALL_PAGES = (*PAGES, "cluster/deploy/README.md", "benchmarks/README.md")
PACKAGES = ("sleep_rl", "actors", "learners", "cluster")
FOLDERS = (*PACKAGES, "configs", "docs", "tests", "benchmarks")
WIDEST = 120
EXAMPLE_FILES = ("moves.py", "shared.py", "my_")  # docs/extending.md has the reader write them


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def text_of(page):
    return (ROOT / page).read_text()


# ---- what a page says


def blocks(page_text):
    """Return the fenced code blocks of a page without a language."""
    return re.findall(r"^```\n(.*?)^```", page_text, re.M | re.S)


def inline(page_text):
    """Return the inline code of a page, each on one line."""
    prose = re.sub(r"^```.*?^```", "", page_text, flags=re.M | re.S)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def tree(page_text):
    """Yield (path, description) of each line of an indented tree."""
    parents = []
    for indent, name, meaning in re.findall(
        r"^    ( *)([\w.]+/|[\w.]+\.py)\s+(.*)$", page_text, re.M
    ):
        depth = len(indent) // 2
        parents = [*parents[:depth], name]
        yield "".join(parents), meaning


def check_paths(page_text):
    """Check that every path, and every single file name, exists; return the paths."""
    names = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*")}
    found = []
    for code in inline(page_text):
        for word in re.split(r"[\s=]+", code):
            path = word.split("::")[0].removeprefix("./").rstrip(",;:")
            if any(mark in path for mark in "<>{}$") or path.startswith(EXAMPLE_FILES):
                continue
            if path.split("/")[0] in FOLDERS and "/" in path:
                path, _, member = path.partition(":")
                assert glob.glob(path), f"no such path: {path}"
                assert not member or member in defined_in(path), f"{path} has no {member}"
                found.append(path)
            elif re.fullmatch(r"\w+\.(py|yaml|md|sh)", path):
                assert path in names or (ROOT / path).exists(), f"no such file: {path}"
    return found


@cache
def defined_in(path):
    """Return functions, classes and constants of a file, also those inside classes."""
    return {
        getattr(node, "name", None) or getattr(node, "id", None)
        for node in nodes(Path(path))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    }


def check_functions(page_text):
    """Check names in parentheses after a file, or in the table cell after one or more files; return
    them.
    """
    found = []
    named = re.findall(r"(`[\w/]+\.py`) \(((?:`\w+`(?:, )?)+)\)", page_text)
    named += re.findall(r"\| ((?:`[\w/]+\.py`(?:, )?)+) \| ((?:`\w+`(?:, )?)+) \|", page_text)
    for files, names in named:
        paths = re.findall(r"`([^`]+)`", files)
        defined = {name for path in paths for name in defined_in(path)}
        for name in re.findall(r"`(\w+)`", names):
            assert name in defined, f"{paths} have no {name}"
            found.append(name)
    for owner, member, path in re.findall(r"`([A-Z]\w+)\.(\w+)` \(`([\w/]+\.py)`\)", page_text):
        assert {owner, member} <= defined_in(path), f"{path} has no {owner}.{member}"
        found.append(f"{owner}.{member}")
    return found


def check_tree(page_text):
    """Check that every folder of the tree exists, every package has a line (deeper ones may have
    one), and files named in a line are in its folder; return the folders.
    """
    found = []
    for path, meaning in tree(page_text):
        assert (ROOT / path).exists(), f"no such path: {path}"
        folder = ROOT / path if path.endswith("/") else (ROOT / path).parent
        for name in re.findall(r"\b\w+\.py\b", meaning):
            assert (folder / name).exists(), f"{path}: no {name}"
        found.append(path)
    packages = {
        f"{path.parent.relative_to(ROOT)}/"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name == "__init__.py"
    }
    missing = {path for path in packages if path.count("/") <= 2} - set(found)
    assert not missing, f"the tree has no line for {sorted(missing)}"
    return found


def check_keys(page_text):
    """Check that every `section.key` is a key, a section, a key with its value, or a module; return
    the keys.
    """
    known = keys()
    sections = {key.split(".")[0] for key in known}
    found = []
    for code in [*inline(page_text), *blocks(page_text)]:
        for name in re.findall(r"(?<![\w./-])([a-z_]+(?:\.[a-z_]\w*)+)(?![\w/]|\.\w)", code):
            section = name.split(".")[0]
            if section in PACKAGES and exists_as_module(name):
                continue
            if section not in sections or name.endswith((".py", ".yaml", ".md", ".json")):
                continue
            parts = name.split(".")
            prefixes = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
            is_section = any(key.startswith(f"{name}.") for key in known)
            # an option of a mapping, such as rollouts.engine.max_model_len, is no key of its own
            assert is_section or prefixes & set(known), f"no such key: {name}"
            found.append(name)
    return found


def exists_as_module(name):
    """Return whether a dotted name is a module, or a member of one."""
    module = name
    rest = []
    while module:
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
        else:
            for part in rest:
                loaded = getattr(loaded, part, None)
            return loaded is not None
    return False


def check_modules(page_text):
    """Check that every dotted name of our packages that is not a config key can be imported."""
    for code in inline(page_text):
        for name in re.findall(r"(?<![\w./-])((?:sleep_rl|actors|learners)(?:\.\w+)+)", code):
            if name not in keys():
                assert exists_as_module(name), f"no such module or member: {name}"


def command_lines(page_text):
    """Yield every `sleep-rl` command line of a page, as words."""
    code = "\n".join([*blocks(page_text), *inline(page_text)]).replace("\\\n", " ")
    for line in code.splitlines():
        for part in re.split(r"(?:^|[\s;(]|bin/)(?=sleep-rl [a-z])", line):
            if part.startswith("sleep-rl "):
                words = re.sub(r"(?<=\s)\[[^\[\]]*?(?:\.\.\.|\])(?=\s|$)", "", part).split("    #")[
                    0
                ]
                words = re.split(r"[;|)]| --(?=\s)", words)[0].replace("...", "")
                words = re.sub(r"\$\w+", "1", words)
                yield shlex.split(words, comments=True)[1:]


def check_commands(page_text):
    """Check that every command exists and accepts the arguments, and load configs that exist;
    return the commands.
    """
    found = []
    for name, *words in command_lines(page_text):
        assert name in cli.commands, f"no such command: sleep-rl {name}"
        found.append(name)
        if words == ["--help"] or not words:
            continue
        words = [word for word in words if word != "CONFIG" or name != "submit"] or words
        try:
            context = cli.commands[name].make_context(name, list(words))
        except click.UsageError as error:
            raise AssertionError(f"sleep-rl {name} {words}: {error.format_message()}") from error
        config = context.params.get("config")
        if config and Path(config).exists():
            load(config, context.params["overrides"])
    return found


def check_make(page_text):
    """Check that every make target exists."""
    targets = set(re.findall(r"^(\S+):", text_of("Makefile"), re.M))
    code = "\n".join([*blocks(page_text), *inline(page_text)])
    for target in re.findall(r"(?:^|\s)make ([a-z][\w-]*)", code, re.M):
        assert target in targets, f"no such target: make {target}"


def check_links(page, page_text):
    """Check that every relative link leads to a file; return them."""
    prose = re.sub(r"`[^`]*`", "", re.sub(r"^```.*?^```", "", page_text, flags=re.M | re.S))
    found = re.findall(r"\]\(([^)#]+)\)", prose)
    for link in found:
        if "://" not in link:
            assert (ROOT / page).parent.joinpath(link).exists(), f"no such file: {link}"
    return found


@cache
def printed():
    """Return every string of the source, with {} for the parts that an f-string fills in."""
    strings = set()
    for node in nodes_below(*PACKAGES):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            strings.add("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            strings.add(node.value)
    return strings


def check_messages(page_text):
    """Check that every message of the table is in the source, with N, X, digits and ... for parts
    that are filled in; return the messages.
    """
    table = page_text.partition("## Messages of this system")[2]
    found = re.findall(r"^\| `([^`]+)` \|", table, re.M)
    for message in found:
        pieces = [p for p in re.split(r"\.\.\.|\b[NX]\b|\b\d+\b", message) if p.strip()]
        pattern = re.compile(".*".join(re.escape(piece) for piece in pieces), re.S)
        assert any(pattern.search(text) for text in printed()), f"no such message: {message}"
    return found


def check_width(page_text):
    """Check the width of lines of prose and code, except rows of tables."""
    for number, line in enumerate(page_text.splitlines(), start=1):
        assert len(line) <= WIDEST or line.lstrip().startswith("|"), f"line {number}: {len(line)}"


# ---- the pages


@pytest.mark.parametrize("page", ALL_PAGES)
def test_paths_names_keys_commands_and_links_exist(page):
    text = text_of(page)
    check_paths(text)
    check_functions(text)
    check_keys(text)
    check_modules(text)
    check_commands(text)
    check_make(text)
    check_links(page, text)


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/extending.md"])
def test_no_line_is_too_long(page):
    check_width(text_of(page))


def test_readme_names_every_command_folder_and_page():
    text = text_of(README)
    assert set(check_commands(text)) == set(cli.commands)
    check_tree(text)
    links = check_links(README, text)
    assert {page for page in PAGES if page != README} <= set(links)


def test_the_walk_names_a_function_in_every_step():
    text = text_of("docs/walk.md")
    steps = re.findall(r"^\| \d\S* .*$", text, re.M)
    assert len(steps) >= 25
    assert all(check_functions(step) for step in steps)


def test_glossary_is_sorted_with_a_file_per_word():
    rows = re.findall(r"^\| ([^|]+) \| (.+) \| (`[^|]+) \|$", text_of(GLOSSARY), re.M)
    words = [word.strip() for word, _, _ in rows]
    assert len(words) >= 40 and words == sorted(words, key=str.lower)
    assert len(set(words)) == len(words)
    assert all(re.fullmatch(r"(`[\w/.]+`(, )?)+", files) for _, _, files in rows)


def test_quoted_messages_exist_in_the_source():
    assert len(check_messages(text_of(TROUBLESHOOTING))) >= 7


# ---- the checks find mistakes

MISTAKES = [
    (README, check_paths, "sleep_rl/rewards.py", "sleep_rl/reward.py"),
    (README, check_functions, "(`inherit`)", "(`inherits`)"),
    (README, check_tree, "      drill/ ", "      drills/ "),
    (README, check_tree, "      runtime/ ", "             "),
    (README, check_keys, "`rehearsal.share`", "`rehearsal.shares`"),
    (README, check_commands, "sleep-rl chat runs/demo --prompt", "sleep-rl chat runs/demo --ask"),
    (README, check_commands, "`sleep-rl config`", "`sleep-rl configs`"),
    (README, check_commands, "configs/documents.yaml task.documents.path", "configs/demo.yaml x.y"),
    (README, check_make, "make test ", "make tests "),
    (README, lambda text: check_links(README, text), "(docs/walk.md)", "(docs/walks.md)"),
    ("docs/walk.md", check_functions, "`cut`", "`cuts`"),
    ("docs/walk.md", check_functions, "`micro_batches`", "`micro_batch`"),  # in one of two files
    ("docs/walk.md", check_functions, "`unsaid_items`", "`unsaid`"),
    (TROUBLESHOOTING, check_messages, "tokens fit`", "tokens suit`"),
    (TROUBLESHOOTING, check_width, "The left column", "The left column " * 9),
    (
        "docs/extending.md",
        check_modules,
        "sleep_rl.contracts.roles.Task",
        "sleep_rl.contracts.Task",
    ),
]


@pytest.mark.parametrize(
    ("page", "check", "right", "wrong"),
    MISTAKES,
    ids=[f"{page}: {wrong}"[:60] for page, _, _, wrong in MISTAKES],
)
def test_checks_find_errors(page, check, right, wrong):
    text = text_of(page)
    assert right in text
    with pytest.raises((AssertionError, InputError)):
        check(text.replace(right, wrong, 1))
