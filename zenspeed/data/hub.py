"""Datasets of the Hugging Face hub, or of a mirror that speaks its interface: their files, read while they arrive.

`hf:owner/name`, `hf:owner/name/folder` for the files below a folder of it, or `hf:owner/name/file`. The files are found by
name, as the hub's own viewer does: those whose path has the split as a word (`data/train-00000-of-00004.parquet`, `train.csv`),
or all of them for the split `train` if no path names any split.

All files are those of one revision, which is looked up once: what is read a second time is the same. A connection that breaks
is taken up again at the byte where it broke (huggingface_hub's file system does that); a file is whole only if it has as many
bytes as the hub said. Nothing is written to disk. `fetch` takes copies of whole files instead, into the hub's own cache.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from zenspeed.config import InputError
from zenspeed.data.streams import File, needs, suffix_of

HUB = "hf:"
_SPLITS = ("train", "validation", "valid", "dev", "val", "test", "eval")
_STREAM_BYTES = 1 << 20
_RANGE_BYTES = 1 << 16  # fetched beyond what a reader of Parquet asks for: what it asks next lies close behind


def hub_files(source: str, split: str, endpoint: str | None, suffixes: Sequence[str], fetch: bool = False) -> list[File]:
    """The files of one split, in order. `fetch`: local copies of them, fetched whole when they are not there yet.

    Raises:
        InputError: the name is none, the hub cannot be reached or refuses, or it has no such split.
    """
    hub = needs("huggingface_hub", "huggingface_hub", source)
    parts = source.removeprefix(HUB).strip("/").split("/")
    if len(parts) < 2 or not all(parts):
        raise InputError(f"{source}: name a dataset as hf:owner/name, hf:owner/name/folder or hf:owner/name/file")
    name, folder = "/".join(parts[:2]), "/".join(parts[2:])
    with explained(source, endpoint):
        files = hub.HfFileSystem(endpoint=endpoint, skip_instance_cache=True)
        revision = hub.HfApi(endpoint=endpoint).dataset_info(name).sha
        root = f"datasets/{name}@{revision}"
        found = {path.removeprefix(f"{root}/"): info for path, info in files.find(root, detail=True).items()}
    inside = [path for path in found if path.startswith(f"{folder}/" if folder else "")]
    chosen = [folder] if folder in found else split_files(inside, split, suffixes, source)
    if not fetch:
        return [HubFile(files, f"{root}/{path}", endpoint, found[path]) for path in chosen]
    with explained(source, endpoint):
        return [
            Path(hub.hf_hub_download(name, path, repo_type="dataset", endpoint=endpoint, revision=revision)) for path in chosen
        ]


def split_files(names: Sequence[str], split: str, suffixes: Sequence[str], source: str) -> list[str]:
    """Those of `names` that belong to `split`, in order."""
    data = sorted(n for n in names if suffix_of(Path(n)) in suffixes and suffix_of(Path(n)) not in (".md", ".py"))
    chosen = [n for n in data if split in _words(n)]
    if not chosen and split == "train" and not any(s in _words(n) for n in data for s in _SPLITS):
        chosen = data
    if not chosen:
        splits = sorted({s for n in data for s in _words(n) if s in _SPLITS})
        there = (
            f"its files name the splits {', '.join(splits)}; set data.split" if splits else "it has no file that can be read"
        )
        raise InputError(f"{source}: no files of the split {split!r}; {there}")
    return chosen


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", name.lower()))


# ---- files


@dataclasses.dataclass(frozen=True)
class HubFile:
    """A file of a dataset, as `streams.RemoteFile` describes it."""

    files: Any
    """The hub as a file system."""
    path: str
    """`datasets/owner/name@revision/path`."""
    endpoint: str | None
    info: dict[str, Any]
    """What the hub says of the file: its size, its hash."""

    def __str__(self) -> str:
        owner, _, rest = self.path.removeprefix("datasets/").partition("@")
        return f"{HUB}{owner}/{rest.partition('/')[2]}"

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix

    @property
    def size(self) -> int:
        return int(self.info["size"])

    @property
    def identity(self) -> str:
        large = self.info.get("lfs")
        return str(large["sha256"] if large else self.info["blob_id"])

    def stream(self) -> BinaryIO:
        """From the first byte to the last, in order."""
        with explained(str(self), self.endpoint):
            file = self.files.open(self.path, "rb", block_size=0)
        return cast(BinaryIO, io.BufferedReader(_Stream(self, file), _STREAM_BYTES))

    def anywhere(self) -> BinaryIO:
        """Bytes wherever they are asked for, and few others."""
        with explained(str(self), self.endpoint):
            file = self.files.open(self.path, "rb", block_size=_RANGE_BYTES, size=self.size)
        return cast(BinaryIO, _Ranges(self, file))


class _Stream(io.RawIOBase):
    """The bytes of one response after another, each beginning where the one before broke off."""

    def __init__(self, of: HubFile, file: Any) -> None:
        self._of, self._file, self._taken = of, file, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        place = f"{self._of}: byte {self._taken:,} of {self._of.size:,}"
        with explained(place, self._of.endpoint):
            data = self._file.read(len(buffer))
        self._taken += len(data)
        if self._taken > self._of.size or (not data and self._taken < self._of.size):
            end = "ends there" if not data else f"goes on after {self._of.size:,}"
            raise InputError(f"{place}: {end}: the hub or the mirror gave a part of the file; run it again, or data.fetch=true")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if self._file.response is not None:
            self._file.response.close()
        super().close()


class _Ranges(io.RawIOBase):
    def __init__(self, of: HubFile, file: Any) -> None:
        self._of, self._file = of, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = 0) -> int:
        return int(self._file.seek(place, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with explained(f"{self._of}: byte {self.tell():,} of {self._of.size:,}", self._of.endpoint):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


# ---- what can go wrong


@contextmanager
def explained(what: str, endpoint: str | None) -> Iterator[None]:
    """Errors of the hub as an `InputError` that names `what`, the endpoint and the fix."""
    import huggingface_hub.errors as errors
    from huggingface_hub.constants import ENDPOINT

    at = endpoint or ENDPOINT
    try:
        yield
    except InputError:
        raise
    except errors.HFValidationError as error:
        raise InputError(f"{what}: no name of a dataset: {_reason(error)}; name it as hf:owner/name") from None
    except errors.GatedRepoError:
        raise InputError(
            f"{what}: is gated at {at}; accept its terms on its page there, then `hf auth login` or HF_TOKEN"
        ) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise InputError(
            f"{what}: no such dataset at {at}, or a private one ({_status(error)}); check owner and name, and for a private "
            "one `hf auth login` or HF_TOKEN"
        ) from None
    except errors.HfHubHTTPError as error:
        refused = _status(error) in ("401", "403")
        fix = "`hf auth login` or a token that may (HF_TOKEN)" if refused else "another address of the hub: data.endpoint=URL"
        raise InputError(f"{what}: {at} answers {_status(error)}: {_reason(error)}; give {fix}") from None
    except errors.OfflineModeIsEnabled:
        raise InputError(f"{what}: HF_HUB_OFFLINE is set, so {at} is not asked; unset it, or give a local file") from None
    except FileNotFoundError as error:
        raise InputError(f"{what}: is not there at {at}: {_reason(error)}; check the name and data.split") from None
    except Exception as error:  # those of the network, of which each layer has its own
        raise InputError(
            f"{what}: {at} cannot be reached: {_reason(error)}; check the network, or another address of the hub: "
            "data.endpoint=URL"
        ) from None


def _status(error: Any) -> str:
    return str(error.response.status_code) if getattr(error, "response", None) is not None else "an error"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
