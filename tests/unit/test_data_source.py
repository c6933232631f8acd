"""Documents from files: what is read, how it is cut, and what a user is told when it cannot be read."""

from __future__ import annotations

import errno
import json
import random
import tracemalloc
from pathlib import Path

import pytest

from zenspeed.config import InputError
from zenspeed.data import streams
from zenspeed.data.source import documents, sections
from zenspeed.recipe import DataConfig


def read(path: Path | str, **config: object) -> list[str]:
    return list(documents(DataConfig.model_validate(config), str(path)))


def fails(path: Path | str, **config: object) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **config)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- what is read


def test_file_as_one_document_is_kept_to_the_letter(tmp_path: Path) -> None:
    text = "\n\n  one\r\n\n\ntwo 中文 \n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert read(tmp_path / "a.txt", section_characters=0) == [text]
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read(tmp_path / "a.txt", section_characters=0) == [text]  # a byte order mark is no text


def test_folder_is_read_in_the_order_of_paths(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/b/c.py", "c.rst", "skipped.log", ".hidden.txt", ".git/config.txt", "empty.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if name == "empty.txt" else name)
    (tmp_path / "rows.jsonl").write_text('{"text": "row one"}\n\n{"text": "row two", "id": 2}\n{"text": ""}\n')
    expected = ["a/b/c.py", "a/z.md", "b.txt", "c.rst", "row one", "row two"]
    assert read(tmp_path, section_characters=0) == expected
    assert read(tmp_path / "*.log", section_characters=0) == ["skipped.log"]
    assert read(tmp_path / "**" / "*.[mp]*", section_characters=0) == ["a/b/c.py", "a/z.md"]


def test_rows_are_documents_whatever_their_length(tmp_path: Path) -> None:
    texts = ["短", "x" * 50_000, "a\n\n\n\nb"]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"body": t}) + "\n" for t in texts))
    assert read(path, text_column="body", section_characters=300) == texts
    path.write_text('{"text": "half \\ud83d"}\n')
    assert read(path) == ["half �"]


def test_large_file_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    path.write_text(("word " * 20 + "\n\n") * 300_000)  # 30 MB
    config = DataConfig(source=str(path))
    tracemalloc.start()
    count = sum(1 for _ in documents(config, str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count > 2000
    assert peak < 8_000_000


# ---- sections


def test_sections_end_at_blank_lines_and_lose_no_text() -> None:
    paragraphs = [f"paragraph {n} " + "word " * (n % 40) + "\nsecond line" for n in range(200)]
    for blank in ("\n\n", "\n \t\n\n", "\r\n\r\n"):
        cut = list(sections([blank.join(paragraphs)], 500))
        assert len(cut) > 20
        assert all(500 <= len(s) <= 1000 for s in cut[:-1])
        assert all(s.startswith("paragraph") and s.endswith("second line") for s in cut)
        assert blank.join(cut).split(blank) == paragraphs


@pytest.mark.parametrize("separator", ["\n", " ", "。", ""])
def test_text_without_blank_lines_is_cut_at_the_next_best_place(separator: str) -> None:
    text = separator.join(["机器学习" * 3 + "abc"] * 500)
    cut = list(sections([text], 300))
    assert len(cut) > 10
    assert max(map(len, cut)) <= 600
    assert "".join(cut).replace("\n", "") == text.replace("\n", "")
    if separator:
        assert all(s.rstrip(separator).endswith("abc") for s in cut)


def test_sections_do_not_depend_on_blocks() -> None:
    rng = random.Random(0)
    for _ in range(100):
        text = "".join(rng.choices(["\n", "\n\n", "a", "bc ", "。", " \n \n"], k=300))
        whole = list(sections([text], 20))
        at = sorted(rng.sample(range(len(text)), 8))
        blocks = [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]
        assert list(sections(blocks, 20)) == whole


def test_small_text_gives_enough_documents_to_hold_some_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A line of a small text.\n" * 1000)
    assert 40 < len(read(tmp_path / "a.txt")) < 200


# ---- the embedded corpus


def test_python_docs_are_documents_of_modules_and_topics() -> None:
    found = read("python-docs")
    assert len(found) > 500
    assert sum(map(len, found)) > 2_000_000
    (module,) = [d for d in found if d.startswith("textwrap\n")]
    where = [module.index(name) for name in ("textwrap.TextWrapper\n", "textwrap.TextWrapper.wrap\n", "textwrap.dedent\n")]
    assert where == sorted(where)
    assert "Remove any common leading whitespace from every line in `text`." in module
    assert any(d.startswith("booleans\n") for d in found)  # a topic
    assert not any(d.startswith(("test.", "unittest.test", "idlelib.idle_test")) for d in found)


def test_definitions_are_found_wherever_they_stand(tmp_path: Path) -> None:
    from zenspeed.data import python_docs

    inside = {
        "class A:": ["'a'", "def f(self):", " 'f'", " def inner():", "  'inner'"],
        "try:": ["async def g():", " 'g'"],
        "except E:": ["def h():", " 'h'"],
        "finally:": ["def i():", " 'i'"],
        "match 1:": ["case 1:", " def j():", "  'j'"],
        "if 1:": ["pass"],
        "else:": ["def k():", " 'k'", "def the_same_text():", " 'k'"],
    }
    program = "".join(line + "\n" for head, body in inside.items() for line in [head, *(f" {b}" for b in body)])
    (tmp_path / "m.py").write_text(program)
    document = python_docs._module_document(tmp_path / "m.py", "m", set())
    expected = ["m.A", "m.A.f", "m.A.f.inner", "m.g", "m.h", "m.i", "m.j", "m.k"]
    assert [line for line in document.split("\n") if line.startswith("m.")] == expected


# ---- errors


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("x")
    assert f"corpsu.txt: no such file; did you mean {tmp_path}/corpus.txt?" in fails(tmp_path / "corpsu.txt")
    assert "no such file" in fails(tmp_path / "nowhere" / "a.txt")
    assert "did you mean python-docs?" in fails("python_docs")
    assert "no file matches" in fails(tmp_path / "*.md")


def test_empty_file_and_blank_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    assert "a.txt: is empty" in fails(tmp_path / "a.txt")
    assert "all files in it are empty" in fails(tmp_path)
    (tmp_path / "a.txt").write_text(" \n\n\t\n")
    assert "holds no text" in fails(tmp_path / "a.txt")


@pytest.mark.parametrize("before", [0, 1, 5, (1 << 20) - 1, 1 << 20, (1 << 20) + 3])
def test_wrong_encoding_names_the_byte(before: int, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    start = ("中" + "a" * before).encode()
    path.write_bytes(start + "中文".encode("gb18030"))
    assert f"a.txt: not UTF-8 at byte {len(start)};" in fails(path)
    path.write_bytes(start + "文".encode()[:2])
    assert f"a.txt: not UTF-8 at byte {len(start)}: the last character is cut off" in fails(path)


def test_wrong_byte_is_named_wherever_blocks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_BLOCK_BYTES", 5)
    path = tmp_path / "a.txt"
    for before in ("中文" * 2, "a中文", "🎉a🎉", "éa中"):
        start = before.encode()
        path.write_bytes(start + b"\xff" + "文".encode())
        assert f"not UTF-8 at byte {len(start)};" in fails(path)


def test_characters_across_blocks_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_BLOCK_BYTES", 5)
    text = "a中文🎉é" * 20
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert read(tmp_path / "a.txt", section_characters=0) == [text]


def test_binary_file_names_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * (1 << 20) + b"abc\0def")
    assert f"a.txt: a binary file (NUL at byte {(1 << 20) + 3})" in fails(path)
    path.write_bytes("text".encode("utf-16"))
    assert "looks like UTF-16" in fails(path)
    path = tmp_path / "b.jsonl"
    path.write_bytes(b'{"text": "a"}\n\0')
    assert "b.jsonl:2: a NUL at byte 14" in fails(path)


def test_folder_without_readable_files(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("x")
    (tmp_path / "b.log").write_text("x")
    message = fails(tmp_path)
    assert "no file of .txt, .md, .py, .rst, .jsonl" in message
    assert "in this folder; there are 2 .log" in message


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    for name in ("a.txt", "b.jsonl"):
        (tmp_path / name).write_text("{}")
        with monkeypatch.context() as patch:  # root may read anything, so a mode of 000 would prove nothing
            patch.setattr(Path, "open", refuse)
            assert f"{name}: cannot be read: Permission denied" in fails(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "b"', "rows.jsonl:2: not JSON at column 13: Expecting ',' delimiter"),
        (b'["b"]', "rows.jsonl:2: expected a JSON object"),
        (b'{"content": "b", "title": "", "texts": ""}', "rows.jsonl:2: no column 'text'; did you mean data.text_column=texts?"),
        (b'{"content": "b", "texts": ""}', "(columns: texts, content)"),
        (b'{"text": null}', "rows.jsonl:2: column 'text' is null, not text"),
        (b'{"text": "\xff"}', "rows.jsonl:2: not UTF-8 at byte 24"),
        (b"[" * 100_000, "rows.jsonl:2: "),
    ],
)
def test_bad_row_names_the_line(line: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "a"}\n' + line + b'\n{"text": "c"}\n')
    assert message in fails(tmp_path / "rows.jsonl")
