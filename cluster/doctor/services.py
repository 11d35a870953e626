"""Checks of the services that a run uses: a Ray cluster, W&B, the Hugging Face hub."""

from __future__ import annotations

import netrc
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from cluster.doctor.finding import Finding
from cluster.doctor.machine import MIN_TMP, disk_space
from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import one_line
from sleep_rl.model.packaged_base import PACKAGED
from sleep_rl.model.shape import HUB_NAME

CONNECT_S = 5.0
WANDB_HOST = "api.wandb.ai"


def ray_address(where: str | None) -> Finding:
    """Check that the Ray cluster at cluster.address (or RAY_ADDRESS) accepts connections."""
    if not where or where in ("local", "auto"):
        return Finding(
            "cluster",
            True,
            "the Ray of this node" if where == "auto" else "a Ray of its own on this node",
        )
    host, _, port = where.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return Finding("cluster", False, f"cluster.address: HOST:PORT or auto, got {where}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        return Finding(
            "cluster",
            False,
            f"nothing answers at {where} ({error}): start it with ray start --head, or correct "
            "cluster.address",
        )
    return Finding("cluster", True, f"{where} answers")


def wandb_login(environment: Mapping[str, str], home: Path, mode: str | None) -> Finding:
    """Check that an API key of W&B exists if one is needed. The key is never printed.

    `home`: the user's home folder; `mode`: the config's wandb.mode, None without a config.
    """
    host = (
        urlsplit(environment.get("WANDB_BASE_URL") or f"https://{WANDB_HOST}").hostname
        or WANDB_HOST
    )
    files = (
        [Path(environment["NETRC"])]
        if environment.get("NETRC")
        else [home / ".netrc", home / "_netrc"]
    )
    found = "in WANDB_API_KEY" if environment.get("WANDB_API_KEY") else ""
    for file in files:
        try:
            entry = None if found else netrc.netrc(str(file)).authenticators(host)
        except FileNotFoundError:
            continue
        except (OSError, netrc.NetrcParseError) as error:
            why = getattr(error, "strerror", None) or "it cannot be parsed"
            return Finding(
                "wandb",
                mode in (None, "off", "offline"),
                f"{file}: {why}; wandb login rewrites it (wandb.mode=online needs it)",
            )
        found = found or (f"for {host} in {file}" if entry else "")
    if found:
        return Finding("wandb", True, f"found an API key ({found})")
    if mode == "online":
        return Finding(
            "wandb",
            False,
            "wandb.mode is online, but there is no API key: wandb login, or wandb.mode=offline",
        )
    return Finding(
        "wandb",
        True,
        f"wandb.mode is {mode or 'off by default'}; there is no API key, which online needs "
        "(wandb login)",
    )


def hub_names(config: Config) -> tuple[list[str], list[str]]:
    """Return (models, data sets) that a config takes from the hub, by their names there."""
    named = [
        config.model.base,
        *config.model.teachers,
        config.reward.model if config.reward.semantic != "none" else None,
    ]
    section = config.task.section
    data = section.path.partition(":")[0] if section.on_hub else ""
    return [n for n in named if n and _on_hub(n)], [data] if data and _on_hub(data) else []


def _on_hub(name: str) -> bool:
    return name not in PACKAGED and not Path(name).exists() and HUB_NAME.fullmatch(name) is not None


def hub(
    endpoint: str,
    cache: str,
    offline: bool,
    models: list[str],
    data: list[str],
    may_read: Callable[[str], str],
) -> list[Finding]:
    """Check that the hub's cache is writable, and that the hub answers and grants access to the
    models. An unreachable hub is ok when everything is in the cache.

    `models`, `data`: names on the hub; `may_read(model)`: queries the hub; returns why the model
    cannot be read, or "".
    """
    missing = [
        n
        for kind, names in (("models", models), ("datasets", data))
        for n in names
        if not (Path(cache) / f"{kind}--{n.replace('/', '--')}").is_dir()
    ]
    findings = [disk_space("hub cache", cache, MIN_TMP)]
    if offline:
        advice = (
            f"{', '.join(missing)} is not in {cache}: unset it, or copy another machine's cache"
            if missing
            else "nothing is missing"
        )
        return [*findings, Finding("hub", not missing, f"HF_HUB_OFFLINE is set; {advice}")]
    try:
        urllib.request.urlopen(
            urllib.request.Request(endpoint, method="HEAD"), timeout=CONNECT_S
        ).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        if missing:
            advice = (
                f"{', '.join(missing)} is not in {cache}: set a proxy in HTTPS_PROXY, a mirror in "
                "HF_ENDPOINT, or copy another machine's cache"
            )
        else:
            advice = "this config does not need it; HF_HUB_OFFLINE=1 avoids the attempts"
        return [
            *findings,
            Finding("hub", not missing, f"{endpoint} cannot be reached ({why}); {advice}"),
        ]
    refused = [f"{name}: {reason}" for name in models if (reason := may_read(name))]
    if refused:
        return [*findings, Finding("hub", False, f"{'; '.join(refused)}")]
    access = f"; access to {', '.join(models)}" if models else ""
    return [*findings, Finding("hub", True, f"{endpoint} answers{access}")]


def may_read(endpoint: str, name: str) -> str:
    """Query the hub about a model; return why it cannot be read, or ""."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        HfApi(endpoint=endpoint).auth_check(name)
    except GatedRepoError:
        return "is gated: accept its licence on the hub, then hf auth login"
    except RepositoryNotFoundError:
        return "does not exist or is private: correct the name, or hf auth login"
    except (HfHubHTTPError, OSError) as error:
        return f"cannot be queried ({one_line(error)})"
    return ""
