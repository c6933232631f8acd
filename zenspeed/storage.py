"""Object storage through fsspec: `s3://bucket/path` and whatever else fsspec has a package for (gs://, az://, file://).

A `Store` is one folder there. An object appears whole or not at all, but a folder has no name of its own that could be given
at the end, so what has several objects is complete when the last one is there, its manifest.

Keys and the address of the service are not ours to keep: s3fs takes them as all of AWS's programs do, from
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL or ~/.aws.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from zenspeed.errors import InputError

T = TypeVar("T")
WAITS_SECONDS = (1.0, 5.0, 25.0)
"""Between attempts at what failed for no reason of ours; fsspec's packages have their own attempts before."""
PACKAGES = {"s3": "'zenspeed[s3]'", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


def is_remote(text: str) -> bool:
    """An address such as s3://bucket/path, and no path of this machine."""
    return "://" in text


def local_place(url: str) -> Path:
    """The folder of this machine where a run kept at `url` is written first."""
    return Path("runs") / url.rstrip("/").rpartition("/")[2]


class Store:
    """A folder of object storage.

    Raises:
        InputError: in all methods, with the address, the reason and the fix.
    """

    def __init__(self, url: str, waits_seconds: Sequence[float] = ()) -> None:
        self.url, self._waits = url.rstrip("/"), waits_seconds
        scheme, _, path = self.url.partition("://")
        if not path.strip("/"):
            raise InputError(f"{url}: names no bucket; expected s3://bucket/path")
        fsspec = _fsspec(url)
        try:
            self._files, self._root = fsspec.url_to_fs(self.url)
        except ImportError:
            raise InputError(f"{url}: needs a package; install it: pip install {PACKAGES.get(scheme, 'fsspec')}") from None
        except ValueError as error:
            raise InputError(f"{url}: cannot be reached: {error}; addresses look like s3://bucket/path") from None

    def names(self, pattern: str = "**") -> dict[str, float]:
        """Objects below the folder that match, each with a number that grows with the time of its writing."""
        self._files.invalidate_cache()
        found = self._try("", lambda: self._files.glob(f"{self._root}/{pattern}", detail=True))
        return {path.removeprefix(f"{self._root}/"): _written(info) for path, info in found.items() if info["type"] == "file"}

    def put(self, local: Path, name: str) -> None:
        self._try(name, lambda: self._files.put_file(str(local), f"{self._root}/{name}"))

    def get(self, name: str, local: Path) -> None:
        """The object as a file, which is there when it is whole."""
        local.parent.mkdir(parents=True, exist_ok=True)
        temporary = local.with_name(f".{local.name}.{os.getpid()}")
        try:
            self._try(name, lambda: self._files.get_file(f"{self._root}/{name}", str(temporary)))
            temporary.replace(local)
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, folder: str) -> None:
        self._try(folder, lambda: self._files.rm(f"{self._root}/{folder}", recursive=True))

    def version(self, name: str) -> str:
        """Changes when the object does: from its tag, size and time."""
        return str(self._try(name, lambda: self._files.ukey(f"{self._root}/{name}")))

    def _try(self, name: str, action: Callable[[], T]) -> T:
        place = f"{self.url}/{name}" if name else self.url
        for wait in (*self._waits, None):
            try:
                return action()
            except FileNotFoundError:
                raise InputError(f"{place}: is not there; is the bucket right, and the path in it?") from None
            except PermissionError as error:
                raise InputError(f"{place}: not allowed: {_reason(error)}; give keys that may, see docs/clusters.md") from None
            except Exception as error:  # each package has its own, and those of its transport
                if _about_keys(error):
                    raise InputError(f"{place}: no keys: {_reason(error)}; set AWS_ACCESS_KEY_ID, or ~/.aws") from None
                if wait is None:
                    raise InputError(
                        f"{place}: cannot be reached: {_reason(error)}; is the service there? (AWS_ENDPOINT_URL)"
                    ) from None
                time.sleep(wait)
        raise AssertionError


def fetch_files(source: str, cache: Path, suffixes: Sequence[str]) -> list[Path]:
    """Local copies of what `source` names: an object, a folder or a glob. A copy is fetched anew when the object changes.

    Raises:
        InputError: nothing is there, or the storage cannot be reached.
    """
    folder, _, last = source.rstrip("/").rpartition("/")
    glob = "*" in last
    store = Store(folder if glob else source)
    names = [n for n in store.names(last if glob else "**") if glob or n.lower().endswith(tuple(suffixes))]
    if not names and not glob:
        store, names = Store(folder), [last]
    if not names:
        raise InputError(f"{source}: no object matches; look with: python -m fsspec.cli, aws s3 ls, or another pattern")
    return [_cached(store, name, cache) for name in sorted(names)]


def _cached(store: Store, name: str, cache: Path) -> Path:
    version = hashlib.sha256(f"{store.url}/{name}\0{store.version(name)}".encode()).hexdigest()[:24]
    local = cache.expanduser() / "remote" / version / Path(name).name
    if not local.exists():
        store.get(name, local)
    return local


def _fsspec(url: str) -> Any:
    try:
        import fsspec.core
    except ImportError:
        raise InputError(f"{url}: needs the package fsspec; install it: pip install 'zenspeed[s3]'") from None
    return fsspec.core


def _written(info: dict[str, Any]) -> float:
    when = info.get("LastModified") or info.get("mtime") or info.get("created") or 0.0
    return float(when.timestamp() if hasattr(when, "timestamp") else when)


def _about_keys(error: Exception) -> bool:
    return type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
