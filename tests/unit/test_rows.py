"""Rows of every kind of file, and what is said about those that cannot be read."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
from pathlib import Path
from typing import Any

import pytest

from zenspeed.config import InputError, load
from zenspeed.data.hub import split_files
from zenspeed.data.prepare import prepare
from zenspeed.data.rows import ReadReport, Row, RowOptions, read_rows
from zenspeed.data.source import SourceReport, copies, documents
from zenspeed.data.streams import lines, opened
from zenspeed.recipe import DataConfig, Recipe
from zenspeed.tasks.data import read_split

TEXTS = ["plain", 'with "quotes", and commas', "two\nlines", "中文 🎉", "a\r\nb", ""]
ROWS: list[Row] = [{"text": t, "label": str(i)} for i, t in enumerate(TEXTS)]


def write(path: Path, rows: list[Row] = ROWS) -> Path:
    if ".csv" in path.name or ".tsv" in path.name:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if ".tsv" in path.name else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        parquet.write_table(arrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path | str, **options: Any) -> list[Row]:
    return list(read_rows(str(path), RowOptions(**options)))


def fails(path: Path | str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def skips(path: Path | str, **options: Any) -> tuple[list[Row], ReadReport]:
    report = ReadReport()
    return list(read_rows(str(path), RowOptions(on_bad_row="skip", **options), report)), report


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_kinds_of_files_give_the_same_rows(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a.{suffix}")
    assert read(path) == ROWS
    assert read(path, columns=("label",), only=True) == [{"label": row["label"]} for row in ROWS]
    config = DataConfig(source=str(path))
    report = SourceReport()
    assert list(documents(config, str(path), report)) == TEXTS[:-1]
    assert (report.read.rows, report.read.empty_texts) == (6, 1)


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst"])
def test_compressed_files_and_those_cut_off(ending: str, tmp_path: Path) -> None:
    from backports import zstd

    rows: list[Row] = [{"text": os.urandom(50).hex()} for _ in range(2000)]
    data = write(tmp_path / "a.csv", rows).read_bytes()
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd.compress}[ending]
    path = tmp_path / f"b.csv.{ending}"
    path.write_bytes(pack(data))
    assert read(path) == rows
    path.write_bytes(pack(data)[:-3000])
    for message in (fails(path), fails(path, on_bad_row="skip")):  # a file cut off is no bad row
        assert f"b.csv.{ending}: the compressed file is cut off" in message
    path.write_bytes(b"no such thing")
    assert f"b.csv.{ending}: " in fails(path)


def test_many_files_by_glob_and_folder(tmp_path: Path) -> None:
    for n in range(300):
        (tmp_path / f"{n % 7}").mkdir(exist_ok=True)
        (tmp_path / f"{n % 7}" / f"{n:04d}.txt").write_text(f"line {n}\n")
    found = read(tmp_path)
    assert len(found) == 300
    assert found[:2] == [{"text": "line 0"}, {"text": "line 7"}]
    assert len(read(tmp_path / "3" / "*.txt")) == 43


def test_saved_dataset_is_as_its_library_reads_it(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list([{"text": f"t{i}", "n": i} for i in range(1200)])
    whole.shuffle(seed=1).save_to_disk(str(tmp_path / "one"), num_shards=3)
    assert read(tmp_path / "one") == datasets.load_from_disk(str(tmp_path / "one")).to_list()
    datasets.DatasetDict(train=whole, test=whole.select(range(5))).save_to_disk(str(tmp_path / "two"))
    assert len(read(tmp_path / "two")) == 1200
    assert read(tmp_path / "two", split="test") == whole.select(range(5)).to_list()
    assert "no split 'dev'; set data.split to one of train, test" in fails(tmp_path / "two", split="dev")


def test_files_of_a_split_on_the_hub() -> None:
    names = ["README.md", "data/train-00001.parquet", "data/train-00000.parquet", "data/test-00000.parquet"]
    assert split_files(names, "train", (".parquet",), "hf:a/b") == names[2:0:-1]
    assert split_files(["b.csv", "a.csv"], "train", (".csv",), "hf:a/b") == ["a.csv", "b.csv"]
    with pytest.raises(InputError, match="no files of the split 'dev'; its files name the splits test, train"):
        split_files(names, "dev", (".parquet",), "hf:a/b")
    assert "name a dataset as hf:owner/name" in fails("hf:name")


# ---- bad input


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_missing_column_lists_those_there_nearest_first(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a.{suffix}", [{"id": "1", "label": "x", "texts": "y"}])
    assert "no column 'text'; did you mean data.text_column=texts? (columns: texts, " in fails(path, columns=("text",))


def test_inconsistent_quotes_do_not_swallow_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\nfine,1\n"open,2\nnext,3\n"closed"x,4\nextra,5,6\nfew\n"two\nlines",7\nlast,"8\n')
    rows, report = skips(path)
    assert [row["label"] for row in rows] == ["1", "3", "7"]
    assert report.bad_rows == 5
    assert [bad.split(": ")[0].removeprefix(f"{path}:") for bad in report.first_bad] == ["3", "5", "6", "7", "10"]
    assert "3 fields, the first line names 2" in report.first_bad[2]
    assert f"{path}:3: " in fails(path) and "data.on_bad_row=skip" in fails(path)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "txt"])
def test_mixed_encodings_and_nul(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    row = '{{"text": "{}"}}' if suffix == "jsonl" else "{}"
    head = b"text\n" if suffix == "csv" else b""
    bad = [row.format("中文").encode("gb18030"), row.format("a\0b").encode()]
    good = [row.format(t).encode() for t in ("first", "文", "last")]
    path.write_bytes(head + b"\n".join([good[0], *bad, *good[1:]]) + b"\n")
    rows, report = skips(path)
    assert [r["text"] for r in rows] == ["first", "文", "last"]
    start = len(head) + len(good[0]) + 1
    assert f": not UTF-8 at byte {start + row.index('{}') - (suffix == 'jsonl') * 1}" in report.first_bad[0]
    assert ": a NUL at byte " in report.first_bad[1]
    assert "not UTF-8" in fails(path)
    path.write_bytes((head + good[0] + b"\n").decode().encode("utf-16"))
    assert read(path, encoding="utf-16") == [{"text": "first"}]
    path.write_bytes(b"\xef\xbb\xbf" + head + good[0] + b"\r\n")
    assert read(path) == [{"text": "first"}]


def test_a_very_long_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text\n" + b"x" * 100_000_000 + b"\nshort\n")
    assert [len(str(row["text"])) for row in read(path)] == [100_000_000, 5]
    path.write_bytes(b"one\n" + b"y" * 5000 + b"\ntwo\n")
    with opened(path) as file:
        found = list(lines(file, longest=1000))
    assert [(line.number, line.data) for line in found] == [(1, b"one\n"), (2, b""), (3, b"two\n")]
    assert found[1].problem == "the line is longer than 1,000 bytes"
    assert found[2].offset == 5005


def test_nested_columns(tmp_path: Path) -> None:
    rows: list[Row] = [{"id": i, "translation": {"en": f"en {i}", "zh": "中"}, "tags": ["a"]} for i in range(3)]
    for path in (write(tmp_path / "a.parquet", rows), write(tmp_path / "a.jsonl", rows)):
        assert read(path) == rows
        assert read(path, columns=("translation.en",), only=True) == [{"translation.en": f"en {i}"} for i in range(3)]
        config = DataConfig(source=str(path), text_column="translation.en")
        assert list(documents(config, str(path))) == ["en 0", "en 1", "en 2"]
        with pytest.raises(InputError, match=r"not text; name one inside: translation\.en"):
            list(documents(DataConfig(source=str(path), text_column="translation"), str(path)))
        assert "translation.en" in fails(path, columns=("translation.fr",))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 but not really")
    assert "b.parquet: cannot be read as Parquet" in fails(tmp_path / "b.parquet")


def test_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS * 100)
    rows = read_rows(str(path))
    next(rows)
    with path.open("a") as file:
        file.write('{"text": "late", "label": "0"}\n')
    with pytest.raises(InputError, match="changed while it was read"):
        list(rows)


def test_nothing_good_is_an_error_even_when_bad_rows_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("[1]\n[2]\n")
    assert "no row in it can be read; the first: " in fails(tmp_path / "a.jsonl", on_bad_row="skip")
    (tmp_path / "a.csv").write_text("text,label\n")
    assert "holds no rows" in fails(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("text,label,text\na,b,c\n")
    assert "a.csv:1: two columns are named 'text'" in fails(tmp_path / "a.csv")


# ---- into training data


def test_mixture_reads_by_weight_and_seed(tmp_path: Path) -> None:
    a = write(tmp_path / "a.csv", [{"text": f"a {i}"} for i in range(400)])
    b = write(tmp_path / "b.jsonl", [{"body": f"b {i}"} for i in range(400)])
    sources = [{"source": str(a), "weight": 1.5}, {"source": str(b), "weight": 0.25, "text_column": "body"}]

    def mixed(seed: int) -> list[str]:
        config = DataConfig.model_validate({"sources": sources, "mixture_seed": seed})
        return list(documents(config, config.source))

    found = mixed(1)
    assert 550 <= sum(t.startswith("a") for t in found) <= 650
    assert 70 <= sum(t.startswith("b") for t in found) <= 130
    assert found == mixed(1) != mixed(2)
    assert [copies("x", 2.0, 1), copies("y", 1.0, 9)] == [2, 1]


def test_prepare_from_a_compressed_table_cleaned(tmp_path: Path) -> None:
    rows: list[Row] = [{"body": f"Text number {i % 150} <b>with</b> some words in it {i % 150}."} for i in range(300)]
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(write(tmp_path / "a.csv", rows).read_bytes() + b'"open,\n'))
    data = {"source": str(path), "text_column": "body", "cache": str(tmp_path / "cache"), "on_bad_row": "skip"}
    recipe: dict[str, Any] = {"data": data, "model": {"context": 32}, "tokenizer": {"kind": "char"}}
    plain = prepare(Recipe.model_validate(recipe))
    data["clean"] = {"markup": "tags", "duplicates": "exact"}  # type: ignore[assignment]
    said: list[str] = []
    clean = prepare(Recipe.model_validate(recipe), said.append)
    assert any(line.startswith("1 rows could not be read, the first: ") and "a.csv.gz:302" in line for line in said), said
    assert "cleaned 300 texts: changed by markup 300; left out by duplicates 150" in said
    assert plain.folder != clean.folder
    assert plain.train.num_documents + plain.validation.num_documents == 300
    assert clean.train.num_documents + clean.validation.num_documents == 150
    reading = clean.report["reading"]
    assert reading["read"]["rows"] == 300 and reading["read"]["bad_rows"] == 1
    assert reading["cleaned"]["dropped"] == {"duplicates": 150}
    assert reading["cleaned"]["changed"] == {"markup": 300}


def test_a_folder_of_a_hundred_thousand_files(tmp_path: Path) -> None:
    """All are found and read, in the order of their names; no file stays open."""
    per_folder = 50_000  # a file system allows so many names of one file
    for folder in ("a", "b"):
        inside = tmp_path / folder
        inside.mkdir()
        first = inside / "00000.txt"
        first.write_text(f"a line of {folder}\n")
        for number in range(1, per_folder):
            os.link(first, inside / f"{number:05}.txt")
    open_files = Path("/proc/self/fd")
    before = len(list(open_files.iterdir())) if open_files.exists() else 0
    report = ReadReport()
    texts = [row["text"] for row in read_rows(str(tmp_path), report=report)]
    assert texts == ["a line of a"] * per_folder + ["a line of b"] * per_folder
    assert report.files == 100_000
    if before:
        assert len(list(open_files.iterdir())) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text;label\n\"one, two\";a\n", r"a\.csv:1: the fields are parted by semicolons; write them with commas"),
        ("a.csv", b"text\tlabel\none\ta\n", r"a\.csv:1: the fields are parted by tabs; name the file \.tsv"),
        ("a.pdf", b"%PDF-1.4\nsome text\n", r"a\.pdf: a PDF, not text; save its text first"),
        ("a.xlsx", b"PK\3\4\0\0\0\0\0", r"a\.xlsx: a zip archive, or a document of an office program, .*save it as CSV"),
        ("a.jsonl", b"[{}, {}]\n", r"a\.jsonl:1: expected a JSON object, this is a list; write one object a line"),
    ],
)  # fmt: skip
def test_another_format_is_said(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_rows(str(tmp_path / name)))


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([], r"a\.csv: column 'text' is blank in all rows; name the column of the text: task\.text"),
        (["data.clean.min_characters=5"], r"data\.clean: leaves no row of .*a\.csv \(left out by length 30\); ask for less"),
    ],
)
def test_rows_of_which_none_is_left(sets: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + '" ",a\n' * 30)
    recipe = load(Recipe, None, ["task.kind=classification", "tokenizer.kind=wordpiece", "model.preset=bert", *sets])
    with pytest.raises(InputError, match=message):
        read_split(recipe, str(tmp_path / "a.csv"))
