"""Where a store is: a folder on a disk, or an address such as s3://bucket/name."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from deflow_vision.datasets.schema import StoreError

CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION and "
    "AWS_ENDPOINT_URL, or AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true for a public bucket",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
"""The environment variables that open an address, by its scheme."""


def is_address(place: Path | str) -> bool:
    """Whether a place is an address rather than a folder; file:///folder is a folder."""
    return re.match(r"[A-Za-z][\w+.-]+:/", str(place)) is not None and not _file_url(place)


def locate(place: Path | str) -> Path | str:
    """A folder as a path, or an address as text.

    Args:
        place: a folder, file:///folder, or an address.

    Raises:
        StoreError: an address of an unknown kind, or with credentials in it.
    """
    if not is_address(place):
        return Path(unquote(urlsplit(str(place)).path)) if _file_url(place) else Path(place)
    parts = urlsplit(str(place))
    if parts.scheme not in (*CREDENTIALS, "http", "https") or not parts.netloc:
        raise StoreError(
            f"{_unfolded(place)} is no address of a store: those are s3://bucket/name, "
            "gs://bucket/name, az://container/name, http://host/name and https://host/name."
        )
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise StoreError(
            "an address of a store has no user, password, ? or # in it: it is written into run "
            f"folders. {credentials(str(place))}"
        )
    return str(place).rstrip("/")


def refuse_address(place: Path | str) -> None:
    """Raise a `StoreError` if something is to be written at an address."""
    if is_address(place):
        raise StoreError(
            f"{_unfolded(place)} is an address, and stores are written on a disk: give a folder, "
            "then copy it, as with `aws s3 cp --recursive FOLDER ADDRESS` or `rclone copy`."
        )


def credentials(address: str) -> str:
    """Where the credentials of an address are taken from, in a sentence."""
    scheme = urlsplit(address).scheme
    if scheme not in CREDENTIALS:
        return "Is the address right, and public?"
    return f"Credentials are taken from the environment: {CREDENTIALS[scheme]}."


def _file_url(place: Path | str) -> bool:
    return isinstance(place, str) and place.startswith("file:///")


def _unfolded(place: Path | str) -> str:
    """An address with the slashes that a Path has made one."""
    return re.sub(r":/+", "://", str(place), count=1)
