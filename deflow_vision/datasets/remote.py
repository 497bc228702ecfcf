"""Stores at an address (s3://, gs://, az://, http://): read with patience, through a cache.

The only module that knows obstore.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import zarr
from zarr.storage import ObjectStore, StorePath

from deflow_vision.datasets.address import credentials
from deflow_vision.datasets.block_cache import BlockCache
from deflow_vision.datasets.schema import UNREADABLE, StoreError

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

_log = logging.getLogger(__name__)

RETRY_SECONDS = 300.0
"""How long an address that does not answer is asked again."""
_OPEN_SECONDS = 15.0  # a mistyped address should not take minutes to be refused
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 15.0
_TIMEOUTS = {"connect_timeout": "10s", "read_timeout": "30s", "timeout": "5min"}
# What asking again does not mend: 4xx but for 408 (timeout) and 429 (too many requests).
_FINAL = re.compile(r"status code: 4(?!08|29)\d\d|redirect without LOCATION|must be specified")


class RemoteStore(ObjectStore[Any]):  # type: ignore[misc]
    """Reads objects below an address: asks again in an outage, keeps blocks in a cache.

    A block that is absent is an error here, never zeros.

    Args:
        store: obstore's.
        address: what messages call it.
        retry_seconds: how long a request is repeated.
    """

    reads_at_once = 8
    """Blocks that a reader should ask for at the same time, since each waits mostly."""

    def __init__(self, store: Any, address: str, retry_seconds: float) -> None:
        super().__init__(store, read_only=True)
        self.root, self.retry_seconds = address, retry_seconds
        self._cache: BlockCache | None = None
        self._identity = ""
        self._closing = threading.Event()
        self._silent_since: float | None = None

    def keep(self, cache: BlockCache | None, digests: Mapping[str, str]) -> None:
        """Read blocks through a cache from now on.

        Args:
            cache: shared with other stores; None for none.
            digests: of the arrays, by name: they tell stores apart, wherever they are.
        """
        lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
        self._cache, self._identity = cache, hashlib.sha256(lines.encode()).hexdigest()[:32]

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """An object, or None for metadata that do not exist.

        Raises:
            StoreError: it cannot be read, or a block does not exist.
        """
        if key.endswith("zarr.json") or byte_range is not None:
            return await self._fetch(key, prototype, byte_range)
        name = _file_name(key)
        if self._cache is not None:
            kept = await asyncio.to_thread(self._cache.read, self._identity, name)
            if kept is not None:
                return prototype.buffer.from_bytes(kept)
        value = await self._fetch(key, prototype)
        if value is None:
            raise StoreError(
                f"{self.root} is damaged: {key} does not exist. Upload the store again."
            )
        if self._cache is not None:
            await asyncio.to_thread(self._cache.write, self._identity, name, value.to_bytes())
        return value

    def forget(self, key: str) -> bool:
        """Drop an object from the cache, because it does not decode; whether it was there."""
        return self._cache is not None and self._cache.drop(self._identity, _file_name(key))

    def uncached(self) -> RemoteStore:
        """The same store, read past the cache."""
        store = RemoteStore(self.store, self.root, self.retry_seconds)
        store._closing = self._closing
        return store

    def size(self, prefix: str = "") -> int | None:
        """Bytes of all objects below a prefix; None where the server lists none."""
        import obstore

        try:
            batches = obstore.list(self.store, prefix or None)
            return sum(int(item["size"]) for batch in batches for item in batch)
        except obstore.exceptions.BaseError:
            return None

    def close(self) -> None:
        """Give up on what is being asked again."""
        self._closing.set()

    async def _fetch(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        import obstore

        start, pause = time.monotonic(), _FIRST_PAUSE
        while True:
            try:
                value = await super().get(key, prototype, byte_range)
            except (obstore.exceptions.BaseError, OSError) as error:
                reason = _reason(error)
                if _is_final(error, reason):
                    raise StoreError(
                        f"{self.root}/{key} cannot be read: {reason}. {credentials(self.root)}"
                    ) from error
                waited = time.monotonic() - start
                if waited + pause > self.retry_seconds or self._closing.is_set():
                    raise StoreError(
                        f"{self.root}/{key} could not be read for {waited:.0f} seconds, the last "
                        f"time because of: {reason}. When it answers again, repeat the command; a "
                        "training goes on from its last checkpoint with --resume and its folder."
                    ) from error
                self._warn(start, reason)
            else:
                self._be_glad()
                return value
            await self._sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._closing.is_set():
            await asyncio.sleep(min(left, 0.2))

    def _warn(self, since: float, reason: str) -> None:
        if self._silent_since is None:
            self._silent_since = since
            _log.warning(
                "%s does not answer (%s): asking again for up to %.0f seconds",
                *(self.root, reason, self.retry_seconds),
            )

    def _be_glad(self) -> None:
        if self._silent_since is not None:
            silence = time.monotonic() - self._silent_since
            self._silent_since = None
            _log.warning("%s answers again, after %.0f seconds", self.root, silence)


def open_remote(address: str, retry_seconds: float = RETRY_SECONDS) -> Any:
    """The root group of a store at an address.

    Args:
        address: as `locate` returns it.
        retry_seconds: how long a request is repeated; the first one at most 15 seconds.

    Returns:
        A `zarr.Group`, read-only, whose store is a `RemoteStore` without a cache.

    Raises:
        StoreError: it cannot be reached or read, or is no store.
    """
    import obstore

    try:
        upstream = obstore.store.from_url(
            address,
            client_options={"allow_http": True, **_TIMEOUTS},
            retry_config={"max_retries": 0},  # `_fetch` does that, with new credentials each time
        )
    except (obstore.exceptions.BaseError, ValueError) as error:
        raise StoreError(
            f"{address} cannot be opened: {_reason(error)}. {credentials(address)}"
        ) from error
    store = RemoteStore(upstream, address, min(retry_seconds, _OPEN_SECONDS))
    try:
        root = zarr.open_group(store, mode="r", zarr_format=3, use_consolidated=False)
    except StoreError:
        raise
    except FileNotFoundError as error:
        raise StoreError(
            f"{address} is not a deflow-vision store: it has no zarr.json "
            f"({_why_absent(upstream)})."
        ) from error
    except UNREADABLE as error:
        raise StoreError(f"{address} is not a deflow-vision store: {error}") from error
    store.retry_seconds = retry_seconds
    return root


def uncached(array: Any) -> Any:
    """An array to be read whole, past the cache: what is read once is not kept.

    Args:
        array: a `zarr.Array` of any store; one on a disk is returned as it is.
    """
    if not isinstance(array.store, RemoteStore):
        return array
    place = StorePath(array.store.uncached(), array.path)
    return zarr.Array(zarr.AsyncArray(array.metadata, place))


def _file_name(key: str) -> str:
    return key.replace("/", ".")


def _is_final(error: Exception, reason: str) -> bool:
    from obstore import exceptions

    final = (
        *(exceptions.PermissionDeniedError, exceptions.UnauthenticatedError),
        *(exceptions.InvalidPathError, exceptions.NotSupportedError),
    )
    return isinstance(error, final) or _FINAL.search(reason) is not None


def _reason(error: Exception) -> str:
    """The part of obstore's message that is meant for people, in one line."""
    text = " ".join(str(error).split("\n\nDebug source")[0].split())
    return text if len(text) < 400 else f"{text[:400]} ..."


def _why_absent(upstream: Any) -> str:
    import obstore

    try:
        obstore.get(upstream, "zarr.json")
    except (obstore.exceptions.BaseError, OSError) as error:
        return _reason(error)
    return "it has one now"
