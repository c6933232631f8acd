"""Parquet files, and Arrow files of folders that Hugging Face's `datasets` saved, by pyarrow, a batch of rows at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zenspeed.config import InputError
from zenspeed.data.reading import Row
from zenspeed.data.streams import File, needs

_BATCH_ROWS = 512  # few, since one row may hold a whole book


def read_parquet(path: File, only: Sequence[str] | None = None) -> Iterator[Row]:
    """Rows; a nested column is a dict or list. `only`: columns to read, `a.b` for a field of a nested one.

    One group of rows is read after the other, and of each the columns that are asked for.
    """
    parquet = needs("pyarrow.parquet", "pyarrow", str(path))
    try:
        with (
            path.open("rb") if isinstance(path, Path) else path.anywhere() as raw,
            parquet.ParquetFile(raw) as file,
        ):
            names = None if only is None else [n for n in only if _is_there(n, file.schema_arrow.names)]
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=names if names else None):
                    yield from batch.to_pylist()
    except InputError:
        raise
    except (OSError, ValueError) as error:  # pyarrow's errors are these
        raise InputError(f"{path}: cannot be read as Parquet: {_first_line(error)}") from None


def _is_there(name: str, names: Sequence[str]) -> bool:
    return name in names or name.split(".")[0] in names


def read_arrow(path: File) -> Iterator[Row]:
    """Rows of an Arrow stream."""
    arrow = needs("pyarrow", "pyarrow", str(path))
    try:
        with (
            arrow.memory_map(str(path)) if isinstance(path, Path) else path.stream() as raw,
            arrow.ipc.open_stream(raw) as stream,
        ):
            for batch in stream:
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    yield from batch.slice(start, _BATCH_ROWS).to_pylist()
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as Arrow: {_first_line(error)}") from None


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets` saved this folder (`save_to_disk`)."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def saved_dataset_files(folder: Path, split: str) -> list[Path]:
    """The Arrow files of a saved dataset, in order; `split` of one that was saved with several.

    Raises:
        InputError: the split or a file is not there.
    """
    splits = _json(folder / "dataset_dict.json").get("splits") if (folder / "dataset_dict.json").is_file() else None
    if splits is not None:
        if split not in splits:
            raise InputError(f"{folder}: no split {split!r}; set data.split to one of {', '.join(splits)}")
        folder = folder / split
    files = [folder / entry["filename"] for entry in _json(folder / "state.json").get("_data_files", ())]
    for path in files:
        if not path.is_file():
            raise InputError(f"{path}: is missing, though state.json beside it names it; save the dataset again")
    return files


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    return found


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
