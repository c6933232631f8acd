"""Datasets of the hub, by a mirror that stands here: read while they arrive, taken up again where a connection broke."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import http.server
import io
import json
import lzma
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zenspeed.config import InputError, load
from zenspeed.data import on_disk
from zenspeed.data.prepare import prepare
from zenspeed.data.rows import RowOptions, read_rows
from zenspeed.recipe import Recipe

pytest.importorskip("huggingface_hub")
REVISION = "1234567890abcdef1234567890abcdef12345678"
SPLITS = {
    "README.md": b"---\n---\n",
    "data/train-00000-of-00002.csv": b"text,label\none,a\ntwo,b\n",
    "data/train-00001-of-00002.csv": b"text,label\nthree,a\n",
    "data/test.csv": b"text,label\nfour,b\n",
}


class Hub:
    """A mirror with the dataset `some/reviews`: what it was asked, and how it fails when told to."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.sent: dict[str, int] = dict.fromkeys(files, 0)
        self.ranges: list[str] = []
        self.breaks_at: int | None = None
        """Ends the next answer that reaches this byte of a file, once."""
        self.keeps_from: int | None = None
        """Sends from this byte on only when told to go on."""
        self.go_on = threading.Event()
        self.ends_early = False
        """Says that a file is shorter than the listing has it."""
        self.refuses: tuple[int, str] | None = None
        """Status and X-Error-Code of every answer but the listing."""
        self.refuses_all: tuple[int, str] | None = None
        self.url = ""

    def options(self, **more: Any) -> RowOptions:
        return RowOptions(endpoint=self.url, **more)


class Answer(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path, hub = self.path.partition("?")[0], self.hub
        if hub.refuses_all:
            return self.refuse(*hub.refuses_all)
        if path.startswith("/api/datasets/some/reviews"):
            return self.as_json(self.tree(path) if "/tree/" in path else {"id": "some/reviews", "sha": REVISION})
        match = re.fullmatch(f"/datasets/some/reviews/resolve/{REVISION}/(.*)", path)
        if match is None or match[1] not in hub.files:
            return self.refuse(404, "EntryNotFound" if match else "RepoNotFound")
        if hub.refuses:
            return self.refuse(*hub.refuses)
        return self.file(match[1], body)

    def tree(self, path: str) -> list[dict[str, object]]:
        """One level below a folder, or all levels."""
        folder = path.partition(f"/tree/{REVISION}")[2].strip("/")
        inside = [name for name in self.hub.files if name.startswith(f"{folder}/" if folder else "")]
        names = (
            inside if "recursive=True" in self.path or "recursive=true" in self.path else [n for n in inside if "/" not in n]
        )
        sizes = {name: len(self.hub.files[name]) for name in names}
        oids = {name: hashlib.sha1(self.hub.files[name]).hexdigest() for name in names}
        return [{"type": "file", "path": name, "size": sizes[name], "oid": oids[name]} for name in names]

    def file(self, name: str, body: bool) -> None:
        hub, data = self.hub, self.hub.files[name]
        if hub.ends_early:
            data = data[: len(data) // 2]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        last = min(int(asked[2] or len(data) - 1), len(data) - 1) if asked else len(data) - 1
        if asked:
            hub.ranges.append(f"{name} {first}")
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        for start in range(first, last + 1 if body else first, 1 << 16):
            stop = min(start + (1 << 16), last + 1)
            if hub.breaks_at is not None and stop > hub.breaks_at:
                hub.breaks_at, self.close_connection = None, True
                return
            if hub.keeps_from is not None and stop > hub.keeps_from and not hub.go_on.wait(20):
                self.close_connection = True
                return
            try:
                self.wfile.write(data[start:stop])
            except OSError:  # who reads has seen enough
                self.close_connection = True
                return
            hub.sent[name] += stop - start

    def as_json(self, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, bytes]], Hub]]:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    servers = []

    def start(files: dict[str, bytes]) -> Hub:
        hub = Hub(files)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Answer,), {"hub": hub}))
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        return hub

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def lines(count: int) -> list[dict[str, str]]:
    """Rows that hardly compress."""
    return [{"text": f"{number} {os.urandom(500).hex()}"} for number in range(count)]


def as_json_lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize("fetch", [False, True])
def test_files_of_a_split_in_order(fetch: bool, serve: Callable[[dict[str, bytes]], Hub], tmp_path: Path) -> None:
    hub = serve(SPLITS)
    assert [row["text"] for row in read_rows("hf:some/reviews", hub.options(fetch=fetch))] == ["one", "two", "three"]
    assert [row["text"] for row in read_rows("hf:some/reviews", hub.options(split="test", fetch=fetch))] == ["four"]
    assert [row["text"] for row in read_rows("hf:some/reviews/data/test.csv", hub.options(fetch=fetch))] == ["four"]
    assert (tmp_path / "hub").exists() == fetch, "nothing is written unless it is to be kept"
    with pytest.raises(InputError, match=r"name the splits test, train; set data.split"):
        list(read_rows("hf:some/reviews", hub.options(split="validation")))


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz"])
def test_rows_come_before_the_file_is_there(suffix: str, serve: Callable[[dict[str, bytes]], Hub]) -> None:
    """The hub keeps the end of the file back until a row has come."""
    rows, name = lines(5_000), f"train-1.jsonl{suffix}"
    compress: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lambda data: lzma.compress(data, preset=0),
    }  # fmt: skip
    hub = serve({name: compress.get(suffix, bytes)(as_json_lines(rows)), "train-2.jsonl": as_json_lines(rows[:1])})
    hub.keeps_from = len(hub.files[name]) - 200_000
    reading = read_rows("hf:some/reviews", hub.options())
    assert next(reading) == rows[0]
    assert hub.sent[name] < len(hub.files[name]) and hub.sent["train-2.jsonl"] == 0, "one file at a time"
    hub.go_on.set()
    assert list(reading) == [*rows[1:], rows[0]]
    assert hub.sent[name] == len(hub.files[name]) and not hub.ranges


def test_a_broken_connection_is_taken_up_where_it_broke(serve: Callable[[dict[str, bytes]], Hub]) -> None:
    rows = lines(5_000)
    hub = serve({"train.jsonl": as_json_lines(rows)})
    hub.breaks_at = 3_000_000
    assert list(read_rows("hf:some/reviews", hub.options())) == rows
    assert len(hub.ranges) == 1 and 1_000_000 < int(hub.ranges[0].split()[1]) < 3_000_000
    assert hub.sent["train.jsonl"] < len(hub.files["train.jsonl"]) + (1 << 21), "what was there is not sent again"


def test_parquet_by_groups_and_columns(serve: Callable[[dict[str, bytes]], Hub]) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"text": [row["text"] for row in lines(4_000)], "other": [row["text"] for row in lines(4_000)]})
    out = io.BytesIO()
    parquet.write_table(table, out, row_group_size=400)
    hub = serve({"train.parquet": out.getvalue()})
    group = len(out.getvalue()) / 10
    reading = read_rows("hf:some/reviews", hub.options(columns=("text",), only=True))
    assert next(reading)["text"] == table["text"][0].as_py()
    assert hub.sent["train.parquet"] < group * 0.5 + 400_000, "more than one column of one group"
    hub.breaks_at = 2_000_000
    assert [row["text"] for row in reading] == table["text"].to_pylist()[1:]
    assert hub.sent["train.parquet"] < 10 * group * 0.8, "the other column is not fetched"


@pytest.mark.parametrize("held", [1_000, 1_000_000])
def test_a_text_of_the_hub_is_prepared_and_known_again(
    held: int, serve: Callable[[dict[str, bytes]], Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_disk, "HELD_CHARACTERS", held)
    hub = serve({"train.jsonl": as_json_lines([{"text": f"the text of number {n} and some words"} for n in range(300)])})
    sets = [
        "data.source=hf:some/reviews", f"data.endpoint={hub.url}", f"data.cache={tmp_path / 'cache'}",
        "tokenizer.vocab_size=300", "model.context=64",
    ]  # fmt: skip
    first = prepare(load(Recipe, None, sets))
    assert hub.sent["train.jsonl"] == len(hub.files["train.jsonl"]), "fetched once, large or small"
    assert first.train.num_documents + first.validation.num_documents == 300
    assert prepare(load(Recipe, None, sets)).folder == first.folder
    assert hub.sent["train.jsonl"] == len(hub.files["train.jsonl"]), "nothing is fetched again"
    hub.files["train.jsonl"] += b'{"text": "one more"}\n'
    assert prepare(load(Recipe, None, sets)).folder != first.folder


@pytest.mark.parametrize(
    ("name", "refuses", "message"),
    [
        ("some/other", None, r"hf:some/other: no such dataset at http://127.*, or a private one \(404\).*hf auth login"),
        (
            "some/reviews",
            (401, "RepoNotFound"),
            r"hf:some/reviews: no such dataset at http.*private one \(401\).*hf auth login",
        ),
        ("some/reviews", (403, "GatedRepo"), r"hf:some/reviews: is gated at http://127.*; accept its terms"),
        ("some/reviews", (403, ""), r"hf:some/reviews: http://127.* answers 403: .*a token that may"),
        ("some", None, r"hf:some: name a dataset as hf:owner/name"),
        ("some/re views", None, r"hf:some/re views: no name of a dataset: .*hf:owner/name"),
    ],
)
def test_who_refuses_is_named(
    name: str, refuses: tuple[int, str] | None, message: str, serve: Callable[[dict[str, bytes]], Hub]
) -> None:
    hub = serve(SPLITS)
    hub.refuses_all = refuses
    with pytest.raises(InputError, match=message):
        list(read_rows(f"hf:{name}", hub.options()))


def test_a_file_that_is_refused_or_cut_off_is_named(serve: Callable[[dict[str, bytes]], Hub]) -> None:
    hub = serve({"train.jsonl": as_json_lines(lines(5_000))})
    hub.refuses = (401, "GatedRepo")
    with pytest.raises(InputError, match=r"hf:some/reviews/train.jsonl: byte 0 of 5,.*: is gated at http://127"):
        list(read_rows("hf:some/reviews", hub.options()))
    hub.refuses, hub.ends_early = None, True
    with pytest.raises(InputError, match=r"hf:some/reviews/train.jsonl: byte 2,\d+,\d+ of 5,\d+,\d+: ends there.*run it again"):
        list(read_rows("hf:some/reviews", hub.options()))


def test_a_mirror_that_is_not_there_is_named(serve: Callable[[dict[str, bytes]], Hub]) -> None:
    serve(SPLITS)
    for address in ("http://127.0.0.1:9", "127.0.0.1:9", "http://"):
        with pytest.raises(InputError, match=r"hf:some/reviews: .*cannot be reached.*data.endpoint=URL"):
            list(read_rows("hf:some/reviews", RowOptions(endpoint=address)))
