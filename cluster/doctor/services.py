"""Checks of what a run reaches elsewhere: a Ray cluster, W&B, the Hugging Face hub."""

from __future__ import annotations

import netrc
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from cluster.doctor.finding import Finding
from cluster.doctor.machine import LEAST_TMP, room
from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import one_line
from sleep_rl.model.packaged_base import PACKAGED
from sleep_rl.model.shape import HUB_NAME

TRY_S = 5.0
WANDB_HOST = "api.wandb.ai"


def address(where: str | None) -> Finding:
    """Check that the Ray cluster at cluster.address (or RAY_ADDRESS) takes connections."""
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
        socket.create_connection((host.strip("[]"), int(port)), timeout=TRY_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        return Finding(
            "cluster",
            False,
            f"nothing answers at {where} ({error}): start it with "
            "ray start --head, or correct "
            "cluster.address",
        )
    return Finding("cluster", True, f"{where} answers")


def wandb_login(environment: Mapping[str, str], home: Path, mode: str | None) -> Finding:
    """Check that there is a key if one is needed; it is never shown.

    `mode`: the config's wandb.mode, None without a config.
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
    there = "in WANDB_API_KEY" if environment.get("WANDB_API_KEY") else ""
    for file in files:
        try:
            entry = None if there else netrc.netrc(str(file)).authenticators(host)
        except FileNotFoundError:
            continue
        except (OSError, netrc.NetrcParseError) as error:
            why = getattr(error, "strerror", None) or "it cannot be parsed"
            return Finding(
                "wandb",
                mode in (None, "off", "offline"),
                f"{file}: {why}; wandb login writes it anew (wandb.mode=online needs it)",
            )
        there = there or (f"for {host} in {file}" if entry else "")
    if there:
        return Finding("wandb", True, f"a key is there ({there})")
    if mode == "online":
        return Finding(
            "wandb",
            False,
            "wandb.mode is online and there is no key: wandb login, or wandb.mode=offline",
        )
    return Finding(
        "wandb",
        True,
        f"wandb.mode is {mode or 'off by default'}; no key is there, "
        "and online would need one "
        "(wandb login)",
    )


def hub_names(config: Config) -> tuple[list[str], list[str]]:
    """Return the (models, data sets) that a config names by their name on the hub."""
    named = [
        config.model.base,
        *config.model.teachers,
        config.reward.model if config.reward.semantic != "none" else None,
    ]
    path = getattr(getattr(config.task, config.task.name), "path", None)
    data = (path or "").partition(":")[0]
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
    """Check that the hub's cache can be written, and that the hub answers and lets the models be
    read. Without names nothing needs the hub.

    `models`, `data`: names on the hub; `may_read(model)` asks the hub and returns what stands in
    the way, or nothing.
    """
    missing = [
        n
        for kind, names in (("models", models), ("datasets", data))
        for n in names
        if not (Path(cache) / f"{kind}--{n.replace('/', '--')}").is_dir()
    ]
    findings = [room("hub cache", cache, LEAST_TMP)]
    if offline:
        said = (
            f"{', '.join(missing)} is not in {cache}: unset it, or copy another machine's cache"
            if missing
            else "nothing is missing"
        )
        return [*findings, Finding("hub", not missing, f"HF_HUB_OFFLINE is set; {said}")]
    try:
        urllib.request.urlopen(
            urllib.request.Request(endpoint, method="HEAD"), timeout=TRY_S
        ).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        if missing:
            said = (
                f"{', '.join(missing)} is not in {cache}: a proxy in HTTPS_PROXY, a mirror "
                "in HF_ENDPOINT, or a "
                "copied cache"
            )
        else:
            said = "nothing here needs it; HF_HUB_OFFLINE=1 spares the tries"
        return [
            *findings,
            Finding("hub", not missing, f"{endpoint} cannot be reached ({why}); {said}"),
        ]
    refused = [f"{name}: {reason}" for name in models if (reason := may_read(name))]
    if refused:
        return [*findings, Finding("hub", False, f"{'; '.join(refused)}")]
    read = f"; {', '.join(models)} may be read" if models else ""
    return [*findings, Finding("hub", True, f"{endpoint} answers{read}")]


def may_read(endpoint: str, name: str) -> str:
    """Ask the hub about a model; return what stands in the way of reading it, or nothing."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        HfApi(endpoint=endpoint).auth_check(name)
    except GatedRepoError:
        return "is gated: accept its licence on the hub, then hf auth login"
    except RepositoryNotFoundError:
        return "is not there, or private: correct the name, or hf auth login"
    except (HfHubHTTPError, OSError) as error:
        return f"cannot be asked about ({one_line(error)})"
    return ""
