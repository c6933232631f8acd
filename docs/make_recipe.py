"""Writes docs/recipe.md, every key of a recipe, from the docstrings of its fields: python docs/make_recipe.py"""

from __future__ import annotations

from pathlib import Path

from zenspeed.config import Config
from zenspeed.models.presets import PRESETS
from zenspeed.recipe import Recipe

PATH = Path(__file__).with_name("recipe.md")


def render() -> str:
    lines = [
        "# Every key of a recipe",
        "",
        "Written by `docs/make_recipe.py` from the docstrings in `zenspeed/recipe.py` and `zenspeed/models/presets.py`.",
        "Any key can be changed with `--set section.key=value`; `--set section=null` takes away what a file says of it.",
        "An unknown key is an error.",
    ]
    for name, field in Recipe.model_fields.items():
        section = field.annotation
        assert isinstance(section, type) and issubclass(section, Config)
        lines += ["", f"## {name}", "", "| key | default | meaning |", "|---|---|---|"]
        defaults = section().model_dump(mode="json")
        for key, inner in section.model_fields.items():
            default = "null" if defaults[key] is None else str(defaults[key])
            lines.append(f"| `{key}` | `{default}` | {' '.join((inner.description or '').split())} |")
    lines += ["", "## Presets of `model.preset`", ""]
    lines += ["Defaults above are those of `gpt`; what a preset does not name stays as there.", ""]
    for name, values in PRESETS.items():
        lines.append(f"- `{name}`: " + ", ".join(f"{k} {str(v).lower()}" for k, v in values.items()))
    return "\n".join(lines).replace("|null|", "| null |") + "\n"


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
