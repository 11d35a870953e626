"""The package of a submission: which files it has, and what is left out."""

import io
import os
import re
import time
import zipfile
from pathlib import Path

import pytest

from cluster.jobs import package
from sleep_rl.contracts.errors import InputError
from tests.fakes.job_server import DEBUG, submit
from tests.fakes.processes import ROOT

pytestmark = pytest.mark.stack  # real commands in processes of their own


def tree(folder):
    for name in (
        "pyproject.toml",
        "sleep_rl/cli/main.py",
        "x.egg-info/PKG-INFO",
        ".env",
        ".git/config",
        "runs/a/log",
        "sleep_rl/__pycache__/cli.pyc",
        "cache/base",
        "wandb/run-1/files/code/main.py",
        "build/lib/sleep_rl/x.py",
        "sleep_rl/runs/run_dir.py",
        "mine/build/cache/wandb/rules.txt",
        "mine/.hidden/x.py",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_it_contains_the_sources_and_no_hidden_files(tmp_path):
    packed = package.package(tree(tmp_path), {"a/b.yaml": "x: 1"})
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        assert archive.namelist() == [
            "a/b.yaml",
            "mine/build/cache/wandb/rules.txt",
            "pyproject.toml",
            "sleep_rl/cli/main.py",
            "sleep_rl/runs/run_dir.py",
            "x.egg-info/PKG-INFO",
        ]
        assert (
            archive.read("sleep_rl/cli/main.py") == b"sleep_rl/cli/main.py"
            and archive.read("a/b.yaml") == b"x: 1"
        )


def test_what_is_left_out_is_named(tmp_path, server, monkeypatch, capsys):
    tree(tmp_path)
    (tmp_path / "data").symlink_to(tmp_path / "cache")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    (tmp_path / "same.py").symlink_to(tmp_path / "sleep_rl" / "cli" / "main.py")
    os.mkfifo(tmp_path / "mine" / "pipe")
    packed = package.package(tmp_path, {})
    assert packed.left_out == (
        ".env",
        ".git",
        "build",
        "cache",
        "data (a link to a folder)",
        "gone.py (not a regular file)",
        "mine/.hidden",
        "mine/pipe (not a regular file)",
        "runs",
        "wandb",
    )
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        assert archive.read("same.py") == b"sleep_rl/cli/main.py"
    monkeypatch.setattr("cluster.jobs.submit.ROOT", tmp_path)
    monkeypatch.setattr("cluster.jobs.submit.MAX_NAMED", 2)
    assert submit(server, DEBUG) == 0
    assert re.search(
        r"^debug-\S+: the code is sent without \.env, \.git and 8 more$",
        capsys.readouterr().out,
        re.M,
    )


def test_a_folder_of_code_is_sent_whatever_it_is_called(tmp_path):
    (tree(tmp_path) / "build" / "__init__.py").write_text("")
    packed = package.package(tmp_path, {})
    assert "build" not in packed.left_out and "cache" in packed.left_out
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        assert {"build/__init__.py", "build/lib/sleep_rl/x.py"} <= set(archive.namelist())


def test_git_and_ray_leave_out_the_same_folders_in_the_root_only():
    """Ray packs a working directory by .gitignore."""
    lines = (ROOT / ".gitignore").read_text().split()
    written = {line.strip("/") for line in lines if line.startswith("/")}
    assert written == package.DATA_FOLDERS
    assert not package.DATA_FOLDERS & {line.rstrip("/") for line in lines}


def test_a_file_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    tree(tmp_path)

    def locked(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", locked)
    with pytest.raises(InputError, match=r"^submit: cannot read .*: Permission denied$"):
        package.package(tmp_path, {})


def test_equal_contents_give_equal_bytes(tmp_path):
    first = package.package(tree(tmp_path), {})
    time.sleep(0.01)
    os.utime(tmp_path / "pyproject.toml")
    assert package.package(tmp_path, {}) == first
    (tmp_path / "sleep_rl" / "cli.py").write_text("another")
    assert package.package(tmp_path, {}) != first


def test_too_large_a_repository_names_the_largest_folder(tmp_path, monkeypatch, server):
    from cluster.jobs.client import JobServer

    monkeypatch.setattr("cluster.jobs.package.MAX_BYTES", 4 << 20)
    (tree(tmp_path) / "data").mkdir()
    (tmp_path / "data" / "big").write_bytes(bytes(5 << 20))
    with pytest.raises(
        InputError,
        match=r"^submit: .* holds 5 MiB beside .*, most of it in "
        r"data \(5 MiB\), too much to send",
    ):
        package.package(tmp_path, {})
    monkeypatch.setattr("cluster.jobs.client.MAX_BYTES", 1 << 20)
    with pytest.raises(
        InputError,
        match=r"^the working directory has 2 MiB as a zip file, a job server accepts 1 MiB$",
    ):
        JobServer(server.address).submit("x", "true", {}, {}, bytes(2 << 20))


def test_a_folder_without_the_repository_is_refused(tmp_path):
    with pytest.raises(
        InputError,
        match=r"^submit: .* has no pyproject.toml, so it is not the repository; --installed",
    ):
        package.package(tmp_path, {})
