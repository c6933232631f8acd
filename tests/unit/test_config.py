"""A wrong recipe is refused with the place, the value and the nearest right key; a right one survives a round trip."""

from __future__ import annotations

from pathlib import Path

import pytest

from zenspeed.config import Config, InputError, dump, load
from zenspeed.recipe import Recipe, fresh_folder

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_round_trip(tmp_path: Path) -> None:
    recipe = load(Recipe, None, ["optim.lr=3e-4", "train.minutes=2", "run.name=中文", "sample.prompts=['a: b', '']"])
    assert recipe.optim.lr == 3e-4  # YAML 1.1 alone would read 3e-4 as a text
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(recipe), encoding="utf-8")
    assert load(Recipe, path) == recipe


def test_preset_sets_defaults_and_explicit_keys_win() -> None:
    recipe = load(Recipe, None, ["model.preset=gpt2", "model.position=rotary"])
    assert (recipe.model.norm, recipe.model.position, recipe.model.tie_embeddings) == ("layernorm", "rotary", True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim:\n  lr: fast\n", "r.yaml:2: optim.lr: 'fast' is not valid"),
        ("optim:\n  learning_rate: 1\n", "r.yaml:2: optim.learning_rate: unknown key; did you mean optim.lr?"),
        ("\nlr: 1\n", "r.yaml:2: lr: unknown key; did you mean optim.lr?"),
        ("train:\n  steps: 1\n  steps: 2\n", "r.yaml:3: train.steps: given twice"),
        ("train: 3\n", "r.yaml:1: train: 3 is not valid"),
        ("model:\n  width: 10\n  heads: 3\n", "r.yaml:1: model: width 10 is not divisible by heads 3: 10 / 3 = 3.33"),
        ("- a\n", "a recipe is a mapping"),
        ("a: [\n", "not YAML"),
        ("data: {validation: 1.5}\n", "r.yaml:1: data: validation: 1.5 is not a share"),
    ],
)
def test_errors_name_the_place(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        load(Recipe, path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_null_takes_a_section_of_the_file_away(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("tokenizer: {kind: word, vocab_size: 99}\nrun: {seed: 3}\n")
    recipe = load(Recipe, path, ["tokenizer=null"])
    assert recipe.tokenizer == Recipe().tokenizer and not recipe.tokenizer.model_fields_set
    assert recipe.run.seed == 3


def test_an_override_of_steps_takes_the_minutes_of_the_file_away(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("train: {minutes: 3, batch_size: 4}")
    recipe = load(Recipe, path, ["train.steps=5"])
    assert (recipe.train.steps, recipe.train.minutes, recipe.train.batch_size) == (5, None, 4)
    with pytest.raises(InputError, match="give one of them"):
        load(Recipe, path, ["train.steps=5", "train.minutes=1"])


def test_a_run_without_a_name_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though another one began in the same second."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zenspeed.recipe.time.strftime", lambda _: "now")
    for expected in ("mine-now", "mine-now-2", "mine-now-3"):
        folder = fresh_folder(load(Recipe, None, ["data.source=texts/mine.txt"]))
        assert folder == Path("runs") / expected
        folder.mkdir(parents=True)
    assert fresh_folder(load(Recipe, None, ["run.name=given"])) == Path("runs/given")


def test_all_errors_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load(Recipe, None, ["train.steps=-1", "model.layers=0"])
    assert "--set train.steps=-1" in str(error.value) and "--set model.layers=0" in str(error.value)


def test_every_key_is_documented() -> None:
    def walk(section: type[Config]) -> None:
        for name, field in section.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, Config):
                walk(inner)
            else:
                assert field.description, f"{section.__name__}.{name} has no docstring"

    walk(Recipe)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_validate(path: Path) -> None:
    assert load(Recipe, path) != Recipe()
