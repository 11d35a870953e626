"""Rules of the source tree: imports, lengths of files and functions, forbidden words."""

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.fakes.processes import LIMIT_S
from tests.fakes.sources import ROOT, nodes, tree

PACKAGES = ("sleep_rl", "actors", "learners", "cluster")
SOURCES = sorted(
    file.relative_to(ROOT) for package in PACKAGES for file in (ROOT / package).rglob("*.py")
)
SCRIPTS = sorted(file.relative_to(ROOT) for file in (ROOT / "benchmarks").rglob("*.py"))
TESTS = sorted(file.relative_to(ROOT) for file in (ROOT / "tests").rglob("*.py"))
MOST_LINES = 350
MOST_FUNCTION_LINES = 60
MOST_COLUMNS = 100
MOST_FOLDERS = 3
LAYERS = (
    ("contracts", "files", "divergences"),
    ("rewards", "objectives", "schedule"),
    ("config",),
    ("journal",),
    ("model",),
    ("text",),
    ("session",),
    ("tasks",),
    ("writing",),
    ("night",),
    ("dreaming",),
    ("driver",),
    ("plan",),
    ("report",),
    ("watch", "runs"),
    ("cli",),
    ("__main__",),
)
"""Rooms of sleep_rl from the bottom up: each imports only what stands before it."""
SET_FROM_OUTSIDE = {
    "actors/batched_lora.py": {"row", "factor"},  # gradients of torch's tensors
    "actors/serving/server.py": {"client", "app.state", "app.state.server"},
    "actors/vllm_model.py": {"SleepModel"},
    "cluster/doctor/probe.py": {"backend"},  # of tokenizers, as in the next two
    "sleep_rl/model/dequantise.py": {"tokenizer", "tokenizer.backend_tokenizer", "model"},
    "sleep_rl/tasks/small_base.py": {"backend"},
    "cluster/drill/faults.py": {"FlippedByte"},  # its own class
    "cluster/jobs/package.py": {"entry"},
    "cluster/runtime/ray_backend.py": {"ray._private.worker"},
    "cluster/runtime/ray_channel.py": {"sys"},
    "cluster/runtime/ray_node.py": {"services", "Node"},
    "learners/engine.py": {"deepspeed.ops"},
    "sleep_rl/model/grow.py": {"large"},  # a config of transformers, as in the last one
    "sleep_rl/model/memory.py": {"module", "mlp"},  # modules of transformers and vLLM
    "sleep_rl/runs/export.py": {"config"},
}
"""File -> the objects of other packages whose attributes it sets."""
REGISTRIES = re.compile(
    r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|conda\.anaconda|"
    r"https?://[^\s\"']*/(simple|pypi|artifactory|nexus)\b"
)
QUESTION_WORDS = {"How", "What", "Where", "Which"}  # "Whether" is the docstring of a truth value
NO_VERBS = QUESTION_WORDS | {"A", "An", "As", "At", "By", "For", "If", "In", "The", "Whether"}
UNTRACKED = {".git", ".venv", "__pycache__", ".pytest_cache"}
WRITTEN = {"runs", "cache", "wandb", "build"}  # in the root only: sleep_rl/runs is code


@cache
def imports(file: Path) -> frozenset[str]:
    """Return top-level names that a file imports anywhere, also inside functions and by importlib
    with a literal name.
    """
    found = set()
    for node in nodes(file):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module if not node.level else file.parts[0])
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", "") in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            found.add(node.args[0].value)
    return frozenset(name.split(".")[0] for name in found)


def homes(package: str) -> list[Path]:
    return [file for file in SOURCES if package in imports(file)]


def test_ray_is_imported_by_backend_and_job_client_only():
    found = [str(file) for file in homes("ray")]
    backend = [name for name in found if name.startswith("cluster/runtime/ray_")]
    assert set(found) - set(backend) <= {"cluster/jobs/client.py"}


@pytest.mark.parametrize(("package", "home"), [("vllm", "actors"), ("deepspeed", "learners")])
def test_engines_are_imported_in_their_folder_only(package, home):
    assert [file for file in homes(package) if file.parts[0] != home] == []


def test_wandb_is_imported_by_tracking_only():
    assert [str(file) for file in homes("wandb")] in ([], ["cluster/tracking/client.py"])


def test_sleep_rl_imports_no_engines():
    machinery = {"ray", "vllm", "deepspeed", "wandb", "actors", "learners", "cluster"}
    science = [file for file in SOURCES if file.parts[0] == "sleep_rl"]
    found = {str(file): imports(file) & machinery for file in science if imports(file) & machinery}
    assert found in ({}, {"sleep_rl/cli/main.py": {"cluster"}})


def test_the_command_line_imports_cluster_inside_functions_only():
    top = [
        node
        for node in tree(Path("sleep_rl/cli/main.py")).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    assert not any("cluster" in ast.unparse(node) for node in top)


def test_actors_and_learners_do_not_import_each_other_or_cluster():
    for file in SOURCES:
        if file.parts[0] in ("actors", "learners"):
            assert not imports(file) & ({"actors", "learners", "cluster"} - {file.parts[0]}), file


def test_no_test_module_imports_another():
    """Shared helpers are in tests/fakes."""
    for file in sorted((ROOT / "tests").rglob("*.py")):
        for node in nodes(file.relative_to(ROOT)):
            if isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            shared = [part for name in names for part in name.split(".")]
            assert not [p for p in shared if p.startswith("test_") or p == "conftest"], file


def test_package_inits_import_nothing_heavy():
    for file in SOURCES:
        if file.name == "__init__.py":
            assert not imports(file) - {"__future__"}, file


@pytest.mark.parametrize("modules", ["sleep_rl.cli.main", "sleep_rl.cli.main, sleep_rl.plan.plan"])
def test_configs_and_plans_need_no_heavy_imports(modules, tmp_path):
    heavy = "{'torch', 'transformers', 'ray', 'vllm', 'deepspeed', 'wandb', 'matplotlib'}"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.slow  # it imports torch, transformers and datasets in a process of their own
def test_importing_sleep_rl_starts_no_processes(tmp_path):
    names = [
        ".".join(f.with_suffix("").parts)
        for f in SOURCES
        if f.parts[0] == "sleep_rl" and f.stem not in ("__init__", "__main__")
    ]
    found = "print(sorted({'ray', 'vllm', 'deepspeed', 'wandb'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {', '.join(names)}; {found}"],
        cwd=tmp_path,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=LIMIT_S,
    )
    assert done.stdout == "[]\n", done.stderr


def module_of(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(file): file for file in SOURCES}


def imported_modules(file: Path) -> set[str]:
    """Return modules of this tree that a file imports anywhere, also in functions and for
    typing.
    """
    found = set()
    for node in nodes(file):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & set(MODULES)) - {module_of(file)}


def test_no_import_cycles():
    """Also not through imports in functions or for typing."""
    graph = {module: imported_modules(file) for module, file in MODULES.items()}
    left = dict(graph)
    while left:
        leaves = [m for m, imported in left.items() if not imported & set(left)]
        assert leaves, f"these import one another: {sorted(left)}"
        for module in leaves:
            del left[module]


def test_packages_import_only_lower_layers():
    height = {room: i for i, layer in enumerate(LAYERS) for room in layer}
    rooms = {file.parts[1].removesuffix(".py") for file in SOURCES if file.parts[0] == "sleep_rl"}
    assert rooms - {"__init__"} == set(height), "a room without a place in LAYERS"
    wrong = []
    for module, file in MODULES.items():
        if file.parts[0] != "sleep_rl" or file.name == "__init__.py":
            continue
        room = module.split(".")[1]
        for imported in imported_modules(file):
            other = [*imported.split("."), ""][1]
            if imported.startswith("sleep_rl.") and other != room:
                wrong += [f"{module} -> {imported}"] * (height[other] >= height[room])
    assert wrong == []


@pytest.mark.parametrize("file", SOURCES + SCRIPTS, ids=str)
def test_lengths_of_files_and_functions(file):
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    assert len(lines) < MOST_LINES and max(map(len, lines), default=0) <= MOST_COLUMNS
    assert len(file.parts) - 1 <= MOST_FOLDERS
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in nodes(file)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno - node.lineno + 1 >= MOST_FUNCTION_LINES
    }
    assert long == {}


def is_tuple(node: ast.AST) -> bool:
    return isinstance(node, ast.Tuple)


@pytest.mark.parametrize("file", SOURCES + SCRIPTS + TESTS, ids=str)
def test_one_statement_per_line(file):
    """No nested conditional expression, and no assignment of unrelated values in one statement."""
    wrong = []
    for node in nodes(file):
        if isinstance(node, ast.IfExp):
            inside = [n for n in ast.walk(node) if n is not node]
            wrong += [("nested", node.lineno)] * any(isinstance(n, ast.IfExp) for n in inside)
        if isinstance(node, ast.Assign):
            packed = is_tuple(node.targets[0]) and is_tuple(node.value)
            wrong += [("packed", node.lineno)] * packed
    assert wrong == []


def test_no_attribute_of_another_object_is_set():
    """A class changes its own objects, in its methods; those of other packages are listed."""
    found: dict[str, set[str]] = {}
    for file in SOURCES:
        for node in nodes(file):
            is_set = isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load)
            owner = ast.unparse(node.value) if is_set else "self"
            if owner not in ("self", "cls"):
                found.setdefault(file.as_posix(), set()).add(owner)
    assert found == SET_FROM_OUTSIDE


def is_property(function: ast.FunctionDef) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in function.decorator_list)


@pytest.mark.parametrize("file", SOURCES + SCRIPTS, ids=str)
def test_docstrings_begin_with_what_is_done_or_named(file):
    """The docstring of a function begins with a verb, others do not begin with a question word."""
    wrong = []
    for node in nodes(file):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        first = ((ast.get_docstring(node) or "Return").split())[0]
        named = not isinstance(node, ast.FunctionDef) or is_property(node)
        no_verb = not named and not re.fullmatch(r"[A-Z][a-z-]+,?", first)
        if no_verb or first in (QUESTION_WORDS if named else NO_VERBS):
            wrong.append((getattr(node, "name", "module"), first))
    assert wrong == []


def test_no_package_registry_is_named():
    """Registries are a setting of the machine (PIP_INDEX_URL, PIP_FIND_LINKS)."""
    found = []
    for folder, folders, files in os.walk(ROOT):
        skipped = UNTRACKED | WRITTEN if Path(folder) == ROOT else UNTRACKED
        folders[:] = [f for f in folders if f not in skipped and not f.endswith(".egg-info")]
        for name in files:
            text = Path(folder, name).read_bytes().decode("utf-8", errors="ignore")
            found += [f"{name}: {match[0]}" for match in REGISTRIES.finditer(text)]
    assert found == []
