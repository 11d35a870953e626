"""Shared fixtures: tiny checkpoints of the three families, one live engine per checkpoint, and what
keeps a test away from the hub. Functions and fakes that tests import stand in tests/fakes.

The environment is set before anything imports torch or vLLM: they read it once. Both are imported
in the fixtures only: the process that hands the tests to pytest-xdist's workers needs neither.
"""

from __future__ import annotations

import gc
import os

from actors.environment import cpu_environment

os.environ.update(cpu_environment(1), HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

from contextlib import suppress

import psutil
import pytest

from tests import distribution
from tests.fakes.processes import LIMIT_S

STARTS_PROCESSES = {"rollout", "worker"}
"""Fixtures with a vLLM engine, and with a learner on DeepSpeed."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hand out the units of tests/distribution.py."""
    return distribution.scheduler(config, log) if config.option.dist == "loadfile" else None


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(items):
    """Put the longest first, and mark `stack` what starts Ray (a parameter `ray`), an engine or a
    learner.
    """
    items[:] = distribution.in_order(items)
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {}).values()
        if "ray" in parameters or STARTS_PROCESSES & set(item.fixturenames):
            item.add_marker(pytest.mark.stack)


def pytest_collection():
    """Import the test modules without garbage collections, in a seventh less time: they would look
    at a million objects, of which none is garbage.
    """
    gc.disable()


def pytest_collection_finish():
    """Enable garbage collections, which skip the objects of the imports."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    """Let the interpreter free them at its end: triton reports what is left then as a leak."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """Let `os.fsync` check its descriptor without waiting for the disk: what one process reads back
    does not depend on it, and the tests of syncing replace it themselves.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(scope="session")
def base_checkpoint(tmp_path_factory):
    """family -> path of a tiny base checkpoint with a tokenizer."""
    from tests.fakes.models import make_base

    made: dict[str, str] = {}

    def path(family: str = "qwen3") -> str:
        if family not in made:
            made[family] = make_base(family, str(tmp_path_factory.mktemp("base") / family))
        return made[family]

    return path


@pytest.fixture(scope="session")
def sleep_checkpoint(base_checkpoint, tmp_path_factory):
    """(family, kind) -> path of a sleep checkpoint; kind: one of LEVELS."""
    from sleep_rl.model import checkpoints
    from tests.fakes.models import LEVELS, fill_memory, make_tokenizer

    made: dict[tuple[str, str], str] = {}

    def path(family: str = "qwen3", kind: str = "dense") -> str:
        if (family, kind) not in made:
            model = checkpoints.load(base_checkpoint(family), LEVELS[kind])
            if kind in ("dense", "sparse", "sparser", "upper"):
                fill_memory(model)
            target = str(tmp_path_factory.mktemp("sleep") / f"{family}-{kind.replace(' ', '-')}")
            checkpoints.save(model, make_tokenizer(), target)
            made[family, kind] = target
        return made[family, kind]

    return path


@pytest.fixture(scope="session")
def rollout():
    """checkpoint -> RolloutWorker, one per checkpoint, alive until the session ends: engines of one
    process share process groups, so none may be shut down while another is used.
    """
    from actors.rollout import RolloutWorker  # 10 s: only where a test needs an engine
    from tests.fakes.models import ENGINE

    live: dict[str, RolloutWorker] = {}

    def worker(checkpoint: str) -> RolloutWorker:
        if checkpoint not in live:
            live[checkpoint] = RolloutWorker(checkpoint, dtype="float32", engine=ENGINE, seed=0)
        return live[checkpoint]

    yield worker
    for engine in live.values():
        engine.close()


@pytest.fixture(scope="session")
def ray_log_dir(tmp_path_factory):
    """Folder of the logs of the workers on `ray_backend`."""
    return tmp_path_factory.mktemp("ray-logs")


@pytest.fixture(scope="session")
def ray_of_this_process(ray_log_dir):
    """The one RayBackend that a process can have (it takes seconds to start), and the addresses at
    which it and a worker listen. When it is shut down, none of its processes is left.
    """
    from cluster.runtime.ray_backend import RayBackend

    others = family()
    ports = listening()
    backend = RayBackend(cpus=2, log_dir=str(ray_log_dir), start_timeout_s=LIMIT_S)
    worker = backend.spawn("tests.fakes.workers:Echo", {}, name="first")
    backend.ready([worker])
    started = family() - others
    yield backend, {address.ip for address in listening() - ports}
    workers = {p for one in started if one.is_running() for p in one.children(recursive=True)}
    backend.shutdown()
    backend.shutdown()  # does nothing
    _, left = psutil.wait_procs(started | workers, timeout=LIMIT_S)
    assert not left, [process.cmdline() for process in left]


def family():
    """The processes that this one and its descendants have started."""
    return set(psutil.Process().children(recursive=True))


def listening():
    """The addresses at which this process and its descendants listen."""
    found = set()
    for process in (psutil.Process(), *family()):
        with suppress(psutil.NoSuchProcess):
            connections = process.net_connections("inet")
            found |= {c.laddr for c in connections if c.status == psutil.CONN_LISTEN}
    return found


@pytest.fixture(scope="session")
def ray_addresses(ray_of_this_process):
    return ray_of_this_process[1]


@pytest.fixture(scope="module")
def ray_backend(ray_of_this_process):
    """A RayBackend with two CPUs, and without workers of other modules."""
    backend = ray_of_this_process[0]
    yield backend
    while backend._channels:
        backend._channels.pop().kill()


@pytest.fixture(scope="session")
def packaged_site(base_checkpoint, tmp_path_factory):
    """Return (site-packages with the tiny distribution of tests/fakes/packaged.py, its entry)."""
    from tests.fakes import packaged

    folder = tmp_path_factory.mktemp("site")
    return folder, packaged.install(folder, base_checkpoint("llama"))


@pytest.fixture
def packaged_model(packaged_site, base_checkpoint, monkeypatch):
    """Return the name of the tiny packaged model, which is installed."""
    from tests.fakes import packaged

    folder, entry = packaged_site
    packaged.register(monkeypatch, entry, folder, base_checkpoint("llama"))
    return packaged.NAME


@pytest.fixture
def missing_model(packaged_site, base_checkpoint, monkeypatch):
    """Return the name of the tiny packaged model, whose package is not installed."""
    from tests.fakes import packaged

    packaged.register(monkeypatch, packaged_site[1], None, base_checkpoint("llama"))
    return packaged.NAME


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No hub, no cache of one, no base trained before, an empty working folder."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
