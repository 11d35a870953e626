"""Ray's start in this process: errors are one line with the folder of the logs."""

import re

import pytest

from cluster.runtime import ray_node
from sleep_rl.contracts.errors import RunError


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (Exception(), r"^Ray did not start: Exception \(its logs: /tmp/sleep\w+\)$"),
        (Exception("no\nport"), r"^Ray did not start: no port \(its logs: /tmp/sleep\w+\)$"),
        (
            Exception("timed\nout; it timed out"),
            r"^cluster\.start_timeout_s: Ray did not start within 0 s: timed out; it timed out ",
        ),
    ],
    ids=["without a text", "of two lines", "timeout"],
)
def test_an_error_of_ray_is_one_line(error, says, monkeypatch):
    def start_once(*_):
        raise error

    monkeypatch.setattr(ray_node, "_start_once", start_once)
    monkeypatch.setattr(ray_node.tempfile, "mkdtemp", lambda **_: "/tmp/sleep1")
    with pytest.raises(RunError) as caught:
        ray_node.start(1, 0.0)
    assert re.match(says, str(caught.value)) and "\n" not in str(caught.value)
