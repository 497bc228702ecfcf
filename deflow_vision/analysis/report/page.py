"""Pages that need nothing beside themselves: no network, no other file, no script but their own."""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from deflow_vision import __version__
from deflow_vision.files import write_whole

SECRET_NAME = re.compile(r"(KEY|KEY_ID|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)$")
"""Environment variables whose values no page may show."""
SECRET_LENGTH = 6
"""Of the shortest value that is taken for a secret."""
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://\S+")
PRIVATE_PART = re.compile(r"(?<=://)[^/@]+(?=@)|(?<=\?).+")
"""Of an address: the user's name and password, and the query, which may be a signature."""


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Write a whole page; every value is escaped and without secrets (`without_secrets`).

    Its content security policy lets the browser load nothing and run nothing but the page's own
    script, which is named by its digest.

    Args:
        path: the file; it appears only when it is complete.
        template: the name of a file in `templates/`.
        values: what it shows.

    Returns:
        `path`.
    """
    environment = Environment(
        loader=PackageLoader("deflow_vision.analysis.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=functools.partial(_clean, secrets=_secrets()),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (_source(environment, name) for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = environment.get_template(template).render(
        style=style, script=script, digest=digest, version=__version__, **values
    )
    return write_whole(path, lambda part: part.write_text(html, encoding="utf-8"))


def without_secrets(value: Any) -> Any:
    """The same lists, mappings and texts without what a page that is passed on must not tell.

    That are the values of environment variables that are named like keys, and in addresses the
    user's name, the password and the query.
    """
    return _clean(value, _secrets())


def _secrets() -> list[str]:
    """The longest first: one may be the beginning of another."""
    named = (value for name, value in os.environ.items() if SECRET_NAME.search(name.upper()))
    return sorted({value for value in named if len(value) >= SECRET_LENGTH}, key=len, reverse=True)


def _clean(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _clean(each, secrets) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(each, secrets) for each in value]
    if not isinstance(value, str) or hasattr(value, "__html__"):  # markup is clean already
        return value
    for secret in secrets:
        value = value.replace(secret, "***")
    return ADDRESS.sub(lambda found: PRIVATE_PART.sub("***", found.group()), value)


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]
