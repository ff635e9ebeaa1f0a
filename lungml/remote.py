"""Where on an object store does a group lie?

Stores of scans and masks may lie on any object store that `obstore` knows: `s3://bucket/prefix`, `gs://`, `az://`,
`memory://` for tests. Credentials and endpoints come from the environment, as its documentation says. Crops stay on a
local disk: they are memory-mapped.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lungml.errors import LunaError

if TYPE_CHECKING:
    from obstore.store import ObjectStore


class RemoteError(LunaError):
    """An object store cannot be reached or used."""


@dataclass(frozen=True)
class RemoteFolder:
    """A folder on an object store; `/` goes down as with a `Path`.

    Attributes:
        url: without a slash at its end.
    """

    url: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.rstrip("/"))

    def __truediv__(self, name: str) -> RemoteFolder:
        return RemoteFolder(f"{self.url}/{name}") if name else self

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self.name.rpartition(".")[0] or self.name

    def zarr_store(self) -> Any:
        """The folder as a store that zarr reads and writes; `zarrs` takes obstore's as they are."""
        from zarr.storage import ObjectStore

        return ObjectStore(_open(self.url))

    def read(self, name: str) -> bytes:
        """An object's bytes.

        Raises:
            FileNotFoundError: there is none.
            RemoteError: the store does not answer, or refuses.
        """
        import obstore
        from obstore.exceptions import BaseError, NotFoundError

        try:
            return bytes(obstore.get(_open(self.url), name).bytes())
        except (NotFoundError, FileNotFoundError) as error:
            raise FileNotFoundError(f"{self.url}/{name}") from error
        except BaseError as error:
            raise unreachable(self.url, error) from error

    def write(self, name: str, content: bytes) -> None:
        """Write an object, whole or not at all.

        Raises:
            RemoteError: the store does not answer, or refuses.
        """
        import obstore
        from obstore.exceptions import BaseError

        try:
            obstore.put(_open(self.url), name, content)
        except BaseError as error:
            raise unreachable(self.url, error) from error

    def bytes_in(self) -> int:
        """The size of everything in the folder."""
        return sum(size for _, size in self._objects())

    def folders(self) -> list[str]:
        """The names of the folders directly in this one, sorted."""
        import obstore
        from obstore.exceptions import BaseError

        try:
            prefixes = obstore.list_with_delimiter(_open(self.url))["common_prefixes"]
        except BaseError as error:
            raise unreachable(self.url, error) from error
        return sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in prefixes)

    def remove(self) -> None:
        """Delete everything in the folder, its description first: what is half gone is no store."""
        import obstore
        from obstore.exceptions import BaseError

        names = sorted((name for name, _ in self._objects()), key=lambda name: (name != "zarr.json", name))
        for name in names:
            try:
                obstore.delete(_open(self.url), name)
            except FileNotFoundError:  # another run was faster
                continue
            except BaseError as error:
                raise unreachable(self.url, error) from error

    def _objects(self) -> list[tuple[str, int]]:
        import obstore
        from obstore.exceptions import BaseError

        try:
            return [(found["path"], found["size"]) for page in obstore.list(_open(self.url)) for found in page]
        except BaseError as error:
            raise unreachable(self.url, error) from error


Location = Path | RemoteFolder  # where a scan's store may lie


@lru_cache(maxsize=64)  # each scan has addresses of its own
def _open(url: str) -> ObjectStore:
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise RemoteError(f"{url}: object stores need obstore; pip install 'luna-pipeline[s3]'") from error
    from obstore.exceptions import BaseError

    # A local S3 server speaks http, which obstore refuses unless it is allowed to.
    options = {"allow_http": True} if os.environ.get("AWS_ALLOW_HTTP") == "true" else None
    try:
        return from_url(url, client_options=options)  # type: ignore[arg-type]
    except (BaseError, ValueError) as error:
        raise RemoteError(
            f"{url}: not an object store's URL ({_short(error)}); give one such as s3://bucket/luna"
        ) from error


def unreachable(url: str, error: Exception) -> RemoteError:
    """What to raise when an object store did not do what it was asked for."""
    return RemoteError(f"{url}: the object store does not answer or refuses ({_short(error)})")


def _short(error: Exception) -> str:
    """What went wrong, without obstore's pages of detail."""
    return " ".join(str(error).partition("Debug source")[0].split())[:200]
