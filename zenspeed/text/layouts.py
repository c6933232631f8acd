"""The layouts in which vocabularies come: tokenizer.json, vocab.json with merges.txt, vocab.txt, and .tiktoken rank files."""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from zenspeed.config import InputError, read_text
from zenspeed.text.splits import END_OF_TEXT, RANK_FILE_SPLITS, byte_alphabet, split_to_bytes
from zenspeed.text.words import read_wordpiece


def read_layout(place: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The tokenizer at `place`, a folder or a .tiktoken file, and the content of its tokenizer_config.json.

    Raises:
        InputError: nothing of a known layout is there, or a file is broken.
    """
    if place.is_file() and place.suffix == ".tiktoken":
        return _ranks(place), {}
    if not place.is_dir():
        raise InputError(f"{place}: no such folder; give one that holds tokenizer.json")
    settings = {**read_json(place / "special_tokens_map.json"), **read_json(place / "tokenizer_config.json")}
    if (place / "chat_template.jinja").exists():
        settings["chat_template"] = read_text(place / "chat_template.jinja")
    if (place / "tokenizer.json").exists():
        return _tokenizer_json(place / "tokenizer.json"), settings
    if (place / "vocab.json").exists() and (place / "merges.txt").exists():
        return _merges(place), settings
    if (place / "vocab.txt").exists():
        lines = read_text(place / "vocab.txt").rstrip("\n").split("\n")
        return read_wordpiece([line.rstrip("\r") for line in lines], settings.get("do_lower_case", True) is True), settings
    ranks = sorted(place.glob("*.tiktoken"))
    if len(ranks) == 1:
        return _ranks(ranks[0]), settings
    raise InputError(
        f"{place}: holds no tokenizer.json, no vocab.json with merges.txt, no vocab.txt and no .tiktoken file; make one with "
        f"transformers.AutoTokenizer.from_pretrained({str(place)!r}).save_pretrained({str(place)!r})"
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file."""
    if not path.exists():
        return {}
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object")
    return content


def _tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(read_text(path))
    except InputError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"{path}: not a tokenizer: {str(error).splitlines()[0]}") from None


def _merges(folder: Path) -> tokenizers.Tokenizer:
    """GPT-2's layout."""
    vocabulary = read_json(folder / "vocab.json")
    lines = read_text(folder / "merges.txt").split("\n")
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    wrong = next((i for i, pair in enumerate(pairs) if len(pair) != 2), None)
    if wrong is not None:
        raise InputError(f"{folder / 'merges.txt'}: merge {wrong + 1} is not two tokens and a space between: {pairs[wrong]}")
    return _byte_level(vocabulary, pairs, pre_tokenizers.ByteLevel(add_prefix_space=False), folder / "merges.txt")


def _ranks(path: Path) -> tokenizers.Tokenizer:
    """tiktoken's layout: a token in base64 and its rank a line. Its split is not in the file; it goes by the file's name."""
    known = [name for name in RANK_FILE_SPLITS if path.name.startswith(name)]
    if not known:
        raise InputError(
            f"{path}: a .tiktoken file does not hold how text is split, and none is known for this name; "
            f"give a tokenizer.json, or a file whose name begins with {', '.join(RANK_FILE_SPLITS)}"
        )
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        try:
            if line.strip():
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise InputError(f"{path}:{number}: not a token in base64 and its rank: {line[:60]!r}") from None
    letter = {byte: character for character, byte in byte_alphabet().items()}
    written = {token: "".join(letter[b] for b in token) for token in ranks}
    pairs = [_last_merge(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]
    merges = [(written[a], written[b]) for a, b in (pair for pair in pairs if pair is not None)]
    vocabulary = {written[token]: rank for token, rank in ranks.items()}
    inner = _byte_level(vocabulary, merges, split_to_bytes(RANK_FILE_SPLITS[known[0]]), path)
    inner.add_special_tokens([END_OF_TEXT])
    return inner


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens that BPE joins last when it makes `token`; None if no merges lead to it."""
    limit = ranks[token]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        at, best = -1, limit
        for i in range(len(parts) - 1):
            rank = ranks.get(parts[i] + parts[i + 1], limit)
            if rank < best:
                at, best = i, rank
        if at < 0:
            return None
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def _byte_level(vocabulary: dict[str, int], merges: list[Any], split: Any, path: Path) -> tokenizers.Tokenizer:
    try:
        inner = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"{path}: does not fit its vocabulary: {str(error).splitlines()[0]}") from None
    inner.pre_tokenizer = split
    inner.decoder = decoders.ByteLevel()
    special = [token for token in (END_OF_TEXT,) if token in vocabulary]
    inner.add_special_tokens(special)
    return inner
