"""Changes of texts: what they change, what they leave alone, and that they are the same every time."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from zenspeed.errors import InputError
from zenspeed.evaluate.predictions import checked
from zenspeed.evaluate.robustness import changed_rows, changes, effect_of

TEXT = "The quick movie was good, 这部电影非常好 and the story is interesting 12."


def test_every_change_changes_its_part_of_a_text() -> None:
    known = changes(["all"])
    rows = [{"text": TEXT * 5, "label": "a", "note": None}]
    for name, change in known.items():
        (once,), (twice,) = (changed_rows(rows, ["text", "note"], change) for _ in range(2))
        assert once == twice and once["label"] == "a" and once["note"] is None
        assert (once["text"] != rows[0]["text"]) == (name != "half-width"), name
    full = known["full-width"](TEXT, random.Random(1))
    assert full.startswith("Ｔｈｅ　ｑｕｉｃｋ") and known["half-width"](full, random.Random(1)) == TEXT
    other = known["synonyms"](TEXT, random.Random(1))
    assert "film" in other and "fine" in other and ("影片" in other) and "good" not in other
    wrong = known["typos"](TEXT * 20, random.Random(1))
    assert 0.5 * len(TEXT) < len(wrong) / 20 < 1.1 * len(TEXT)


def test_synonyms_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("cat\tfeline\n", encoding="utf-8")
    change = changes(["synonyms"], tmp_path / "words.txt")["synonyms"]
    assert change("A Cat, a movie", random.Random(1)) == "A Feline, a movie"
    with pytest.raises(InputError, match="cannot be read"):
        changes(["synonyms"], tmp_path / "none.txt")
    with pytest.raises(InputError, match="not known; give all"):
        changes(["typo"])


def test_the_effect_is_paired() -> None:
    before = checked([{"label": "a", "prediction": "a"} for _ in range(100)])
    after = checked([{"label": "a", "prediction": "b" if i < 30 else "a"} for i in range(100)])
    effect = effect_of("typos", before, after, 90)
    assert (effect["before"], effect["after"]) == (1.0, 0.7) and effect["high"] < 0
    assert effect["answers_changed"]["value"] == 0.3 and effect["p"] < 1e-6
