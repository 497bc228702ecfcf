"""Policies of the Hugging Face hub. The only module that imports huggingface_hub."""

from __future__ import annotations

import re
from pathlib import Path

from deflow_vision import __version__
from deflow_vision.sharing.folder import NEEDED
from deflow_vision.types import UserError


def is_hub_name(name: str) -> bool:
    """Whether this can be the name of a repository there, "owner/name"."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def download(name: str, revision: str | None) -> Path:
    """Bring a policy into the hub's cache on this machine; nothing else of its repository.

    Args:
        name: "owner/name".
        revision: a branch, a tag or a commit; by default the main branch.

    Returns:
        A folder.

    Raises:
        UserError: there is no such repository or revision, or it cannot be reached.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(NEEDED),
            library_name="deflow-vision",
            library_version=__version__,
        )
    except (OSError, ValueError) as error:  # every error of the hub is one of these
        at = "" if revision is None else f" at revision {revision!r}"
        raise UserError(
            f"{name!r} is no folder here, and the hub does not give it{at}: {error}. A private "
            "repository needs `hf auth login`."
        ) from error
    return Path(folder)
