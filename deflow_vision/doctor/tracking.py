"""The state of Weights & Biases here: never its key."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from deflow_vision.doctor.rows import Row


@dataclass(frozen=True)
class Wandb:
    """What wandb would do.

    Attributes:
        version: the installed one, None without.
        mode: WANDB_MODE, "" where it is not set.
        host: the server.
        login: where a key for it is: "WANDB_API_KEY", the name of a file, or "" for nowhere.
        problem: why the file of keys cannot be read.
    """

    version: str | None
    mode: str
    host: str
    login: str
    problem: str = ""


def look() -> Wandb:
    """Look at this process's environment."""
    return look_at(os.environ)


def look_at(variables: Mapping[str, str]) -> Wandb:
    """Find out whether there is a key, without keeping it.

    Args:
        variables: the environment.
    """
    try:
        version = metadata.version("wandb")
    except metadata.PackageNotFoundError:
        version = None
    address = variables.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    host = urlsplit(address).hostname or address
    mode = variables.get("WANDB_MODE", "")
    if variables.get("WANDB_API_KEY"):
        return Wandb(version, mode, host, "WANDB_API_KEY")
    file = Path(variables.get("NETRC") or "~/.netrc").expanduser()
    try:
        known = file.is_file() and netrc.netrc(str(file)).authenticators(host) is not None
    except netrc.NetrcParseError as error:  # its message alone: the line may hold a key
        return Wandb(version, mode, host, "", f"{file}, line {error.lineno}, cannot be read")
    except OSError as error:
        return Wandb(version, mode, host, "", f"{file}: {error.strerror or error}")
    return Wandb(version, mode, host, str(file) if known else "")


def judge(facts: Wandb) -> list[Row]:
    """One row. Without a login wandb still works offline, which is no fault."""
    if facts.version is None:
        return [Row("wandb", "fail", "not installed", "pip install -r requirements.lock")]
    mode = f", WANDB_MODE={facts.mode}" if facts.mode else ""
    found = f"{facts.version}{mode}, "
    if facts.problem:
        return [Row("wandb", "warn", found + facts.problem, "mend the file, or run wandb login")]
    if facts.login:
        found += f"logged in to {facts.host} by {facts.login}"
    else:
        found += f"not logged in to {facts.host}"
    if facts.mode in ("disabled", "dryrun"):
        remedy = "unset WANDB_MODE: runs say with --log.wandb off, offline or online what they do"
        return [Row("wandb", "warn", found, remedy)]
    if facts.mode == "online" and not facts.login:
        return [Row("wandb", "warn", found, "wandb login; or --log.wandb offline")]
    usable = "" if facts.login else ": --log.wandb offline works, online needs `wandb login`"
    return [Row("wandb", "ok", found + usable)]
