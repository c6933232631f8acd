"""A recipe for data alone: `zenspeed train reviews.csv --task classification --text review --label sentiment`.

    columns ─ kind of task ─ rows read as training will read them ─ facts ─ sections of a recipe, each with its reason

Nothing is measured by training and nothing is drawn: the same data and machine give the same recipe, and whatever the user
sets wins. The tables below are all there is to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from zenspeed.config import InputError, load, nearest
from zenspeed.data.rows import RowOptions
from zenspeed.machine import usable_cores
from zenspeed.recipe import Recipe, TaskConfig
from zenspeed.tasks.data import is_text
from zenspeed.tasks.facts import Facts, check_columns, columns_in, facts_of

Body = Literal["encoder", "decoder", "encoder_decoder"]


class Kind(NamedTuple):
    """What a task needs of a table. Names are keys of the recipe's task section, whose values are columns."""

    texts: tuple[str, ...]
    """Columns of text that the model reads or writes."""
    needed: tuple[str, ...]
    """Columns that must be there."""
    body: Body
    does: str
    joined: bool = True
    """The texts of a row stand in one sequence; else each has its own."""


KINDS: dict[str, Kind] = {
    "classification": Kind(("text", "text_pair"), ("text", "label"), "encoder", "a label for a text"),
    "seq2seq": Kind(("text", "target"), ("text", "target"), "encoder_decoder", "a text from a text", joined=False),
    "chat": Kind(("text", "target"), ("text", "target"), "decoder", "answers"),
    "span_qa": Kind(("question", "context"), ("question", "context"), "encoder", "answers that stand in a text"),
    "similarity": Kind(("text", "text_pair"), ("text", "text_pair"), "encoder", "which texts belong together", joined=False),
    "masked_lm": Kind(("text",), ("text",), "encoder", "hidden words"),
    "span_corruption": Kind(("text",), ("text",), "encoder_decoder", "spans that were left out"),
    "language_model": Kind(("text",), ("text",), "decoder", "to continue text"),
}

# What a column, or an option, of that name says of the task, the surest first.
_TELLS: tuple[tuple[str, str], ...] = (
    ("context", "span_qa"), ("question", "span_qa"), ("messages", "chat"), ("target", "seq2seq"), ("label", "classification"),
    ("score", "similarity"), ("text_pair", "similarity"),
)  # fmt: skip

# Tokens to learn from, below which: blocks × width. What is larger learns such data by heart (docs/LOG.md).
_SIZES: tuple[tuple[float, int, int], ...] = ((5e5, 2, 128), (5e6, 4, 192), (5e7, 6, 256), (float("inf"), 8, 384))

# Rows to learn from, below which: rows an update, times they are gone through.
_PASSES: tuple[tuple[int, int, int], ...] = ((2_000, 16, 8), (50_000, 32, 4), (500_000, 64, 2), (2**63, 128, 1))

_MODELS: dict[Body, dict[str, Any]] = {
    "encoder": {"preset": "gpt", "architecture": "encoder", "pool": "mean", "tie_embeddings": True, "dropout": 0.1},
    "decoder": {"preset": "gpt", "dropout": 0.1, "ngrams": [2, 3]},
    "encoder_decoder": {"preset": "gpt", "architecture": "encoder_decoder", "dropout": 0.1},
}
_OPTIM: dict[Body, dict[str, Any]] = {
    "encoder": {},
    "decoder": {},
    "encoder_decoder": {"lr": 0.01},
}
_LONGEST = 512
_MOST_MINUTES = 30.0
_FLOPS_PER_CORE = 3e10  # that small models reach here in training; only for a guess at the time


class Chosen(NamedTuple):
    """A recipe as data, to which the user's settings are still to be applied, and a line of reasons for each part."""

    recipe: dict[str, Any]
    lines: list[str]


def choose(source: str, kind: str | None, keys: Mapping[str, str], sets: Sequence[str]) -> Chosen:
    """A recipe for the rows of `source`.

    Args:
        kind: the task; None: told by `keys` and the columns.
        keys: keys of the task section that the user gave, such as {"text": "review"}.
        sets: `section.key=value` of the user; they win later, and what they decide is not chosen here.

    Raises:
        InputError: no such task or key, a column is not there, or the task cannot be told.
    """
    _check_keys(keys)
    given = {part.partition("=")[0].strip() for part in sets}
    options = _row_options(source, sets)
    columns = ["text"] if is_text(source) else columns_in(source, options)
    kind, why = (kind, "asked for") if kind else _told_kind(source, keys, columns)
    if kind not in KINDS:
        raise InputError(f"--task {kind}: no such task{nearest(kind, KINDS)} (tasks: {', '.join(KINDS)})")
    shape = KINDS[kind]
    named = _columns_of(kind, keys, columns, source)
    base: dict[str, Any] = {"data": {"source": source}, "task": {"kind": kind, **keys, **named}}
    if kind == "language_model":
        base = {"data": {"source": source, "text_column": named["text"]}, "task": {"kind": kind}}
    pretrained = bool({"model.huggingface", "model.from_run"} & given)
    form = {} if pretrained or "model.preset" in given else _MODELS[shape.body]
    texts = [column for key, column in named.items() if key in (*shape.texts, "messages")]
    asked = load(Recipe, None, sets, base=base | {"model": form})
    facts = facts_of(asked, texts, _tokenizer(shape.body)["kind"], shape.joined)
    lines = [f"task       {kind}, {shape.does}: {why}", f"data       {_described(facts, named)}"]
    parts = _Parts(base, lines, given)
    if pretrained:
        parts.lines.append("model      the pretrained one that was named, with its tokenizer and fine-tuning's rates")
    else:
        _add_model(parts, shape.body, form, facts)
    wished = [asked.model.context] if "model.context" in given else []
    wished += [asked.task.max_tokens] if asked.task.max_tokens is not None else []
    _add_length(parts, kind, facts, pretrained, min(wished, default=None))
    _add_schedule(parts, kind, shape.body, facts, pretrained)
    return Chosen(base, lines)


class _Parts(NamedTuple):
    """A recipe under construction."""

    recipe: dict[str, Any]
    lines: list[str]
    given: set[str]

    def add(self, section: str, values: Mapping[str, Any], why: str, name: str) -> None:
        """Sets what the user did not, and says so."""
        free = {key: value for key, value in values.items() if f"{section}.{key}" not in self.given}
        self.recipe[section] = self.recipe.get(section, {}) | free
        if free:
            self.lines.append(f"{name:<10} {why}")


def _check_keys(keys: Mapping[str, str]) -> None:
    known = {name for name in TaskConfig.model_fields if name != "kind"}
    for key in keys:
        if key not in known:
            raise InputError(f"--{key.replace('_', '-')}: no such option{nearest(key, known, '--')}")


_READING = {"data.on_bad_row", "data.encoding", "data.split", "data.endpoint"}


def _row_options(source: str, sets: Sequence[str]) -> RowOptions:
    # Others, such as data.test, go with a task, which is not known yet.
    wanted = [part for part in sets if part.partition("=")[0].strip() in _READING]
    data = load(Recipe, None, wanted, base={"data": {"source": source}}).data
    return RowOptions(
        on_bad_row=data.on_bad_row, encoding=data.encoding, split=data.split, endpoint=data.endpoint, fetch=data.fetch
    )


def _told_kind(source: str, keys: Mapping[str, str], columns: Sequence[str]) -> tuple[str, str]:
    """The task that the options, else the columns, speak of, and how it was told."""
    for name, kind in _TELLS:
        if name in keys:
            return kind, f"told by --{name.replace('_', '-')}"
    for name, kind in _TELLS:
        if name in columns:
            return kind, f"told by the column {name!r}; --task NAME for another"
    if "text" in keys or "text" in columns:
        return "language_model", "there is text alone; --task NAME for another"
    raise InputError(
        f"{source}: its columns ({', '.join(columns)}) do not tell what is to be learned; say it: "
        "--task classification --text COLUMN --label COLUMN (or another of " + ", ".join(KINDS) + ")"
    )


def _columns_of(kind: str, keys: Mapping[str, str], columns: Sequence[str], source: str) -> dict[str, str]:
    """Task key -> column, of those that the task needs or was given; an InputError where one is not there."""
    shape, fields = KINDS[kind], TaskConfig.model_fields
    named = {key: str(keys.get(key) or fields[key].default or key) for key in shape.needed if key in fields}
    named |= {key: keys[key] for key in shape.texts if key in keys}
    if kind == "chat" and ("messages" in keys or ("text" not in keys and "messages" in columns)):
        named = {"messages": str(keys.get("messages", "messages"))}
    check_columns({key.replace("_", "-"): column for key, column in named.items()}, columns, source)
    return named


def _described(facts: Facts, named: Mapping[str, str]) -> str:
    script = "Chinese" if facts.han > 0.3 else "some Chinese" if facts.han > 0.03 else "alphabetic"
    labels = f", {facts.labels} labels in {named['label']!r}" if facts.labels else ""
    return f"{facts.rows:,} rows, about {facts.tokens:,.0f} tokens of {script} text in {_quoted(named)}{labels}"


def _quoted(named: Mapping[str, str]) -> str:
    return " and ".join(repr(column) for key, column in named.items() if key != "label")


def _tokenizer(body: Body) -> dict[str, Any]:
    """Encoders get BERT's, which has the tokens they need and takes a Chinese character as a word; others write any text."""
    return {"kind": "wordpiece" if body == "encoder" else "bpe"}


def _add_model(parts: _Parts, body: Body, form: Mapping[str, Any], facts: Facts) -> None:
    kind = _tokenizer(body)["kind"]
    why = "reads Chinese by the character" if facts.han > 0.3 and kind == "wordpiece" else "trained on the training rows"
    parts.add("tokenizer", {"kind": kind}, f"{kind}, about {facts.vocab_size:,} tokens: {why}", "tokenizer")
    layers, width = next((layers, width) for most, layers, width in _SIZES if facts.tokens < most)
    sizes = {"layers": layers, "width": width, "heads": width // 32}
    why = f"{body}, {layers} blocks × {width}: {facts.tokens:,.0f} tokens to learn from, no pretrained weights were named"
    parts.add("model", {**form, **sizes}, why, "model")


def _add_length(parts: _Parts, kind: str, facts: Facts, pretrained: bool, wished: int | None) -> None:
    """The length of a sequence: of the model, or with pretrained weights of the texts alone. `wished`: by the user."""
    longest = wished or (256 if kind == "language_model" else min(max(32, facts.fits), _LONGEST))
    over = float((facts.lengths > longest - 2).mean())
    why = f"{longest} tokens" + ("" if kind == "language_model" else f": {100 * (1 - over):.1f} % of rows fit")
    values = {"max_tokens": longest} if pretrained else {}
    if kind in ("classification", "span_qa") and over and "text_pair" not in parts.recipe["task"]:
        values["stride"] = longest // 4
        why += f", longer ones are read in windows that overlap by {longest // 4}"
    elif over and kind != "language_model":
        why += ", longer ones lose their end"
    if not pretrained and "model.context" not in parts.given:
        parts.recipe["model"]["context"] = longest
    parts.recipe["task"] |= {key: value for key, value in values.items() if f"task.{key}" not in parts.given}
    parts.lines.append(f"length     {why}")


def _add_schedule(parts: _Parts, kind: str, body: Body, facts: Facts, pretrained: bool) -> None:
    batch, epochs = next((batch, epochs) for most, batch, epochs in _PASSES if facts.rows < most)
    epochs = min(epochs, 3) if pretrained else epochs
    values: dict[str, Any] = {"batch_size": batch}
    why = f"{batch} rows an update"
    if not {"train.steps", "train.minutes", "train.epochs"} & parts.given:
        minutes = _minutes(parts.recipe, facts) * epochs
        if kind == "language_model" or minutes > _MOST_MINUTES:
            values["minutes"] = min(_MOST_MINUTES, max(2.0, round(minutes)))
            why += f", {values['minutes']:g} minutes, rate falling to 0"
        else:
            values["epochs"] = epochs
            why += f", {epochs} epochs, rate falling to 0: about {max(1, round(minutes))} min on {usable_cores()} cores"
    if not pretrained:
        parts.recipe["optim"] = {k: v for k, v in _OPTIM[body].items() if f"optim.{k}" not in parts.given}
    parts.add("train", values, why + "; set train.… for others", "schedule")


def _minutes(recipe: Mapping[str, Any], facts: Facts) -> float:
    """A guess at an epoch's time, from the products of blocks and head."""
    model = recipe.get("model", {})
    layers, width = model.get("layers", 6), model.get("width", 384)
    flops = 6 * facts.tokens * (12 * layers * width**2 + 4 * width * model.get("context", 256) * layers)
    return flops / (_FLOPS_PER_CORE * usable_cores()) / 60
