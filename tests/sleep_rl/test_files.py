"""Atomic writing: readers, failing disks and killed processes."""

import json
import os
import subprocess
import sys

import pytest

from sleep_rl import files
from sleep_rl.files import atomic_folder, write_atomically
from sleep_rl.tasks.classify.dataset import read_dataset
from sleep_rl.tasks.plugin import load_class
from sleep_rl.tasks.squad.dataset import read_passages


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def temporary(name: str, pid: int, suffix: str = "partial") -> str:
    return f".{name}.{os.uname().nodename}-{pid}.{suffix}"


@pytest.fixture
def refuses_rename(monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    def install():
        monkeypatch.setattr(files.os, "rename", refuse)
        monkeypatch.setattr(files.os, "replace", refuse)

    return install


def test_write_atomically_writes_and_replaces(tmp_path):
    write_atomically(tmp_path / "a", b"one")
    write_atomically(str(tmp_path / "a"), b"two")
    assert (tmp_path / "a").read_bytes() == b"two"
    assert names(tmp_path) == ["a"]


def test_file_is_synced_before_rename_and_folder_after(tmp_path, monkeypatch):
    steps = []
    sync = os.fsync
    replace = os.replace
    monkeypatch.setattr(
        files.os,
        "fsync",
        lambda handle: (
            steps.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))),
            sync(handle),
        ),
    )
    monkeypatch.setattr(
        files.os, "replace", lambda *paths: (steps.append("rename"), replace(*paths))
    )
    write_atomically(tmp_path / "a", b"one")
    assert steps == [temporary("a", os.getpid()), "rename", tmp_path.name]


def test_failed_rename_keeps_the_old_file(tmp_path, refuses_rename):
    write_atomically(tmp_path / "a", b"one")
    refuses_rename()
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"one"
    assert names(tmp_path) == ["a"]


def test_link_of_the_temporary_name_is_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"stays")
    (tmp_path / temporary("a", os.getpid())).symlink_to(outside)
    write_atomically(tmp_path / "a", b"one")
    assert outside.read_bytes() == b"stays"
    assert names(tmp_path) == ["a", "outside"]


def test_link_at_the_target_is_replaced(tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"stays")
    (tmp_path / "a").symlink_to(outside)
    write_atomically(tmp_path / "a", b"one")
    assert (outside.read_bytes(), (tmp_path / "a").read_bytes()) == (b"stays", b"one")


def test_leftovers_of_dead_processes_are_removed(tmp_path):
    dead = dead_pid()
    for name in (
        temporary("a", dead),
        temporary("a", dead, "replaced"),
        temporary("a", os.getppid()),
        temporary("b", dead),
        ".a.another-host-1.partial",
    ):
        (tmp_path / name).write_bytes(b"half")
    write_atomically(tmp_path / "a", b"one")
    assert names(tmp_path) == sorted(
        ["a", temporary("a", os.getppid()), temporary("b", dead), ".a.another-host-1.partial"]
    )


def test_atomic_folder_replaces_at_the_end_of_the_block(tmp_path):
    target = tmp_path / "deep" / "folder"
    for text in ("one", "two"):
        with atomic_folder(target) as folder:
            (folder / "inner").mkdir()
            (folder / "inner" / text).write_text(text)
            before = names(target) if target.exists() else None
        assert before == (None if text == "one" else ["inner"])
        assert names(target / "inner") == [text]
    assert names(target.parent) == ["folder"]


def test_failed_block_keeps_the_old_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    with pytest.raises(KeyError), atomic_folder(tmp_path / "folder") as folder:
        (folder / "new").write_text("new")
        raise KeyError("new")
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["old"]


def test_folder_is_not_replaced_without_replace(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    with pytest.raises(OSError), atomic_folder(tmp_path / "folder", replace=False) as folder:
        (folder / "new").write_text("new")
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["old"]


def test_file_at_the_target_of_a_folder_is_kept(tmp_path):
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(OSError), atomic_folder(tmp_path / "folder"):
        pass
    assert (tmp_path / "folder").read_text() == "a file"
    assert names(tmp_path) == ["folder"]


def test_failed_second_rename_restores_the_old_folder(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    rename = os.rename

    def refuse(source, target):
        if str(source).endswith(".partial"):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(files.os, "rename", refuse)
    with pytest.raises(OSError, match="No space left"), atomic_folder(tmp_path / "folder"):
        pass
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["old"]


def test_folder_is_synced_before_rename(tmp_path, monkeypatch):
    steps = []
    rename = os.rename
    monkeypatch.setattr(files, "_sync", lambda path: steps.append(path.name))
    monkeypatch.setattr(files.os, "rename", lambda *paths: (steps.append("rename"), rename(*paths)))
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "a").write_text("a")
        (folder / "link").symlink_to(tmp_path)
    assert steps == ["a", folder.name, "rename", tmp_path.name]


def test_path_is_found_in_any_unicode_form(tmp_path, monkeypatch):
    composed = "Ä\u00f6.txt"
    decomposed = "A\u0308o\u0308.txt"
    (tmp_path / decomposed).mkdir()
    (tmp_path / decomposed / decomposed).write_text("found")
    path = tmp_path / composed / composed
    assert files.content(path) == b"found"
    assert files.checked(path) == str(tmp_path / decomposed / decomposed)
    assert files.spelled(tmp_path / "none") == str(tmp_path / "none")
    assert files.spelled(tmp_path / "nöne" / composed) == str(tmp_path / "nöne" / composed)
    assert files.spelled(f"{tmp_path}/{composed}/") == str(tmp_path / decomposed)
    monkeypatch.chdir(tmp_path)
    assert files.spelled(composed) == decomposed and files.spelled("ä\0") == "ä\0"
    with pytest.raises(FileNotFoundError, match="nöne"):
        files.content(tmp_path / "nöne")
    (tmp_path / composed).write_text("as it is spelled")
    assert files.content(tmp_path / composed) == b"as it is spelled"


CLINC = {"train": [["book a flight", "travel"]], "test": [["book a train", "travel"]]}
PASSAGE = {"title": "t", "context": "c", "questions": [{"question": "q", "answer": "a"}]}
READERS = {
    "classify": (read_dataset, json.dumps(CLINC)),
    "squad": (read_passages, json.dumps([PASSAGE])),
    "custom": (lambda path: load_class(f"{path}:Own", "task.custom.target"), "class Own: pass"),
}


@pytest.mark.parametrize("task", READERS)
def test_tasks_find_files_in_any_unicode_form(tmp_path, task):
    read, content = READERS[task]
    suffix = ".py" if task == "custom" else ".json"
    (tmp_path / f"A\u0308{suffix}").write_text(content)
    assert read(str(tmp_path / f"\u00c4{suffix}"))
