"""The doctor's checks of the Ray cluster, W&B and the hub."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.doctor import services
from cluster.runtime.ports import reserve_port
from sleep_rl.config.objective import RewardConfig
from sleep_rl.config.schema import Config, Model
from tests.fakes.doctor import assert_finding
from tests.fakes.http_servers import hub_server

KEY = "0123456789abcdef0123456789abcdef01234567"
ANSWERS = {
    "org/open": (200, None),
    "org/gated": (403, "GatedRepo"),
    "org/none": (404, "RepoNotFound"),
    "org/odd": (500, None),
}


def test_the_clusters_address_must_accept_connections():
    assert_finding(services.ray_address(None), True, "of its own")
    assert_finding(services.ray_address("local"), True, "of its own")
    assert_finding(services.ray_address("auto"), True, "of this node")
    with reserve_port("127.0.0.1") as listener:
        where = f"127.0.0.1:{listener.getsockname()[1]}"
        assert_finding(
            services.ray_address(where), False, f"nothing answers at {where}", "ray start --head"
        )
        listener.listen()
        assert_finding(services.ray_address(where), True, f"{where} answers")
        assert_finding(services.ray_address(f"ray://{where}"), True)
    for wrong in ("head", "head:", ":6379", "http://head"):
        assert_finding(services.ray_address(wrong), False, f"HOST:PORT or auto, got {wrong}")
    assert_finding(services.ray_address("127.0.0.1:99999"), False, "nothing answers")


def test_a_wandb_key_is_found_and_never_printed(tmp_path):
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    (tmp_path / "other").write_text(f"machine wandb.example login user password {KEY}\n")
    found = [
        services.wandb_login({"WANDB_API_KEY": KEY}, Path("/none"), "online"),
        services.wandb_login({}, tmp_path, "online"),
        services.wandb_login(
            {"NETRC": str(tmp_path / "other"), "WANDB_BASE_URL": "https://wandb.example"},
            tmp_path,
            "online",
        ),
    ]
    for finding, where in zip(found, ("WANDB_API_KEY", ".netrc", "other"), strict=True):
        assert_finding(finding, True, "found an API key", where)
        assert KEY not in str(finding)


def test_a_missing_wandb_key_fails_in_online_mode_only(tmp_path):
    assert_finding(
        services.wandb_login({}, tmp_path, "online"), False, "wandb login, or wandb.mode=offline"
    )
    assert_finding(
        services.wandb_login({"NETRC": str(tmp_path / "none")}, tmp_path, "online"), False
    )
    for mode in ("off", "offline", None):
        assert_finding(services.wandb_login({}, tmp_path, mode), True, "no API key")
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai password {KEY} nonsense {KEY}\n")
    finding = assert_finding(
        services.wandb_login({}, tmp_path, "online"), False, "cannot be parsed"
    )
    assert KEY not in str(finding)


def test_hub_names_lists_models_and_data_of_a_config(tmp_path):
    assert services.hub_names(Config()) == ([], [])
    config = Config(
        model=Model(base="org/base", teachers=["org/small", str(tmp_path)]),
        reward=RewardConfig(semantic="judge", model="org/judge"),
    )
    assert services.hub_names(config) == (["org/base", "org/small", "org/judge"], [])
    assert services.hub_names(replace(config, reward=RewardConfig(model="org/judge")))[0] == [
        "org/base",
        "org/small",
    ]
    squad = replace(Config(), task=replace(Config().task, name="squad"))
    assert services.hub_names(squad) == ([], [squad.task.squad.path])
    arc = replace(Config(), task=replace(Config().task, name="arc"))
    assert services.hub_names(arc) == ([], []), "its files are not on the hub"


@pytest.fixture
def site():
    """(address, requests) of a hub that responds as ANSWERS says."""
    with hub_server(ANSWERS) as server:
        yield server


def test_a_hub_that_answers_and_grants_access(site, tmp_path):
    endpoint, requests = site
    cache, hub = services.hub(
        endpoint, str(tmp_path), False, [], [], lambda name: pytest.fail("nothing is named")
    )
    assert_finding(cache, True, str(tmp_path))
    assert_finding(hub, True, f"{endpoint} answers")
    assert requests == ["HEAD /"]
    names = []
    assert_finding(
        services.hub(
            endpoint, str(tmp_path), False, ["org/a"], [], lambda name: names.append(name) or ""
        )[1],
        True,
        "access to org/a",
    )
    assert_finding(
        services.hub(endpoint, str(tmp_path), False, ["org/a"], [], lambda name: "is gated")[1],
        False,
        "org/a: is gated",
    )
    assert names == ["org/a"]


@pytest.fixture
def endpoint():
    """An address at which nobody answers."""
    with reserve_port("127.0.0.1") as silent:
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


def test_an_unreachable_hub_fails_only_for_names_outside_the_cache(endpoint, tmp_path):
    def never(name):
        pytest.fail("the hub cannot be reached")

    assert_finding(
        services.hub(endpoint, str(tmp_path), False, [], [], never)[1],
        True,
        "this config does not need it",
    )
    assert_finding(
        services.hub(endpoint, str(tmp_path), False, ["org/a"], [], never)[1],
        False,
        "org/a is not in",
        "HF_ENDPOINT",
    )
    assert_finding(
        services.hub(endpoint, str(tmp_path), True, [], ["org/data"], never)[1],
        False,
        "HF_HUB_OFFLINE is set",
        "org/data",
    )
    (tmp_path / "models--org--a").mkdir()
    (tmp_path / "datasets--org--data").mkdir()
    for offline in (False, True):
        assert_finding(
            services.hub(endpoint, str(tmp_path), offline, ["org/a"], ["org/data"], never)[1], True
        )
    assert_finding(
        services.hub("not an address", str(tmp_path), False, [], [], never)[1],
        True,
        "cannot be reached",
    )
    assert_finding(
        services.hub(endpoint, "/proc/none", False, [], [], never)[0],
        False,
        "cannot write into /proc",
    )


def test_may_read_names_why_a_model_cannot_be_read(site, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    endpoint, requests = site
    assert services.may_read(endpoint, "org/open") == ""
    assert "accept its licence" in services.may_read(endpoint, "org/gated")
    assert "does not exist or is private" in services.may_read(endpoint, "org/none")
    assert "cannot be queried" in services.may_read(endpoint, "org/odd")
    assert {re.search(r"org/\w+", path)[0] for path in requests} == set(ANSWERS)
