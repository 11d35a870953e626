"""The backends that tests of cluster/ run their workers on."""

import pytest

from cluster.runtime.local_backend import LocalBackend


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.stack)])
def backend(request):
    """Workers in this process, and on Ray."""
    if request.param == "ray":
        yield request.getfixturevalue("ray_backend")
        return
    with LocalBackend() as backend:
        yield backend
    backend.shutdown()  # does nothing


@pytest.fixture
def only_ray(backend):
    if isinstance(backend, LocalBackend):
        pytest.skip("needs a process per worker")


@pytest.fixture
def here():
    """A local backend, for tests that need no processes."""
    with LocalBackend() as backend:
        yield backend
