"""A path that is not there: every verb names it, what was meant or what there is, and how all are listed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from zenspeed.cli import app
from zenspeed.errors import InputError, missing


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "recipes/demo.yaml",
        "recipes/chat.yaml",
        "runs/writer/recipe.yaml",
        "hub/config.json",
        "corpus.txt",
        "qa.jsonl",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "runs" / "notes").mkdir()  # holds no run
    monkeypatch.chdir(tmp_path)
    return tmp_path


RECIPES = "there are recipes/chat.yaml, recipes/demo.yaml (all: ls recipes/*.yaml)"
RUNS = "there are runs/writer (all: ls -d runs/*)"
MODELS = "there are runs/writer, hub (all: ls -d runs/*)"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train recipes/dmeo.yaml", "dmeo.yaml: no such recipe; did you mean recipes/demo.yaml? (all: ls recipes/*.yaml)"),
        ("train recipies/demo.yaml --budget 1m", "recipies/demo.yaml: no such recipe; did you mean recipes/demo.yaml?"),
        *[
            (f"{verb} zzz.yaml", f"zzz.yaml: no such recipe; {RECIPES}")
            for verb in ("train", "prepare", "plan", "tune", "crossval", "launch -n 2 train")
        ],
        ("train corpse.txt", "corpse.txt: no such file; did you mean corpus.txt? (all: ls *.txt)"),
        ("train zzz.csv --label a", "zzz.csv: no such file; give a text file, a folder or python-docs"),
        ("data report zzz.jsonl", "zzz.jsonl: no such file; there are qa.jsonl (all: ls *.jsonl)"),
        ("index zzz.jsonl index", "zzz.jsonl: no such file; there are qa.jsonl"),
        ("evaluate --predictions zzz.jsonl", "zzz.jsonl: no such file; there are qa.jsonl"),
        ("compare qa.json qa.jsonl", "qa.json: no such file; did you mean qa.jsonl?"),
        ("resume runs/writre", "runs/writre: no such run; did you mean runs/writer? (all: ls -d runs/*)"),
        ("resume runs/notes", f"runs/notes: holds no complete checkpoint; {RUNS}"),
        *[
            (f"{verb} runs/zzz", f"runs/zzz: no such run; {RUNS}")
            for verb in ("generate", "export", "scale -n 2", "report", "launch -n 2 resume")
        ],
        *[
            (verb, f"runs/zzz: no such run or folder of Hugging Face layout; {MODELS}")
            for verb in ("evaluate runs/zzz", "serve runs/zzz", "serve a=runs/zzz", "launch -n 2 evaluate runs/zzz")
        ],
        ("report runs/notes", f"runs/notes: holds no run: there is no recipe.yaml; {RUNS}"),
        ("search zzz x", "zzz: no index there; make one: zenspeed index DOCUMENTS zzz"),
        ("export zzz --verify", "zzz: no such exported folder; zenspeed export RUN makes one"),
        ("launch zzz.py", "zzz.py: no such file; give one that is there"),
        ("plan recipes/demo.yaml --on zzz.yaml", "zzz.yaml: no such file"),
    ],
)  # fmt: skip
def test_every_verb_answers_alike(words: str, said: str, here: Path) -> None:
    before = sorted(here.rglob("*"))
    done = CliRunner().invoke(app, words.split())
    assert isinstance(done.exception, InputError), (done.output, done.exception)
    assert said in str(done.exception)
    assert sorted(here.rglob("*")) == before


def test_where_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(missing("a/x.yaml", "recipe")) == "a/x.yaml: no such recipe; write one, or give a text instead of it"
    assert str(missing("runs/x", "run")) == "runs/x: no such run; zenspeed train makes one"
