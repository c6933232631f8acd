"""Evaluates a run, or a folder of Hugging Face layout, whatever its task: on its validation split, or on other data.

Rows go through the model in batches by length, on any number of ranks; every rank gets the same answers, so the same figures.
Answers are written as they are made and scored from there, so that no more than a block of rows is held: what stays is a few
numbers a row. Where rows are found among all others (similarity), their vectors stay as well.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch.distributed as dist

from zenspeed.config import InputError, write_atomically
from zenspeed.data.files import PYTHON_DOCS
from zenspeed.data.on_disk import kept_rows
from zenspeed.data.prepare import encode_held_out, prepare
from zenspeed.data.rows import RowOptions, read_rows
from zenspeed.data.shards import TokenDataset
from zenspeed.data.source import documents
from zenspeed.evaluate.interval import Figure
from zenspeed.evaluate.language import document_losses, language_figures
from zenspeed.evaluate.measures import figures_of
from zenspeed.evaluate.predictions import Predictions, as_predictions, checked
from zenspeed.evaluate.robustness import changed_rows, changes, effect_of
from zenspeed.evaluate.rowfile import RowFile
from zenspeed.evaluate.score import Options, evaluation, figure_from, table_of
from zenspeed.evaluate.slices import columns_of, slices_of
from zenspeed.tasks.base import Place
from zenspeed.tasks.data import Rows, is_text, read_split, text_columns
from zenspeed.tasks.open import open_task
from zenspeed.tasks.opening import Model, open_for_evaluation
from zenspeed.tasks.rows import Examples, RowTask, write_rows


class Asked(NamedTuple):
    """An evaluation: on what, and what is looked at."""

    sources: Sequence[str] = ()
    """None: the run's validation split. Several: each gets figures of its own (domains)."""
    checkpoint: str | None = None
    sets: Sequence[str] = ()
    options: Options = Options()
    robust: Sequence[str] = ()
    synonyms: Path | None = None
    predictions: Path | None = None
    """Where the answers are written."""


def evaluate_folder(folder: Path, asked: Asked, rank: int = 0, ranks: int = 1) -> dict[str, Any]:
    """The evaluation as a mapping for JSON, the same on all ranks.

    Raises:
        InputError: no model there, or the data cannot be read, or hold labels that the model does not know.
    """
    model = open_for_evaluation(folder, asked.checkpoint, asked.sets)
    if not asked.sources and not model.trained:
        raise InputError(f"{folder}: was not trained here, so it has no validation split; give --data FILE")
    place, task = model.place(rank, ranks), model.task()
    found = _language(model, asked, place) if task is None else _rows(model, task, asked, place)
    found["model"] = str(folder)
    found["source"] = ", ".join(asked.sources) or "validation split"
    return found


def evaluate_run(folder: Path, source: str | None = None, checkpoint: str | None = None) -> dict[str, Figure]:
    """Figures of a run over all rows of `source` (None: its validation split), those that are defined."""
    found = evaluate_folder(folder, Asked([source] if source else [], checkpoint, options=Options(mistakes=0)))
    figures = {f["name"]: figure_from(f) for f in found["figures"] if f["slice"] == "all"}
    return {name: figure for name, figure in figures.items() if isinstance(figure, Figure)}


# Rows -----------------------------------------------------------------------------------------------------------------


def _rows(model: Model, task: RowTask, asked: Asked, place: Place) -> dict[str, Any]:
    data = _held_out(model, task, asked, place)
    if type(task).predict is RowTask.predict:
        _refuse_what_needs_answers(task, asked)
        return _of_figures(task.judge(model.model, data.examples(), place), "other", len(data.rows))
    with tempfile.TemporaryDirectory(prefix="zenspeed-evaluate-") as name:
        folder = Path(name)
        found = _of_answers(model, task, asked, place, data, folder)
        if asked.predictions is not None and place.rank == 0:
            shutil.copyfile(folder / "answers.jsonl", asked.predictions)
    return found


class _HeldOut(NamedTuple):
    """Rows, many of them on disk."""

    rows: Rows
    sources: list[tuple[str, int]]
    """Of each, how many rows it gives."""
    examples: Callable[[], Examples]
    """The rows encoded."""


def _held_out(model: Model, task: RowTask, asked: Asked, place: Place) -> _HeldOut:
    if not asked.sources:
        opened = _first_rank_first(lambda: open_task(model.recipe, None), place)
        assert isinstance(opened, RowTask)
        rows = opened.validation.rows
        return _HeldOut(rows, [("validation split", len(rows))], lambda: opened.validation)
    parts = [read_split(model.recipe, source) for source in asked.sources]
    rows = parts[0] if len(parts) == 1 else kept_rows(itertools.chain(*parts), model.recipe.data.cache.expanduser())
    sources = [(source, len(part)) for source, part in zip(asked.sources, parts, strict=True)]
    return _HeldOut(rows, sources, lambda: task.encode_all(rows, "the rows"))


def _of_answers(model: Model, task: RowTask, asked: Asked, place: Place, data: _HeldOut, folder: Path) -> dict[str, Any]:
    """Answers are written as they are made, on every rank, and then scored as a file of predictions."""
    options, path = asked.options, folder / "answers.jsonl"
    wanted = [*columns_of(options.slices), *options.protected]
    # Of labels the answers hold the loss as well.
    known = {} if task.recipe.task.kind == "classification" else task.judge(model.model, data.examples(), place)
    answers = zip(data.rows, task.answers(model.model, data.rows, place), strict=True)
    names = (source for source, count in data.sources for _ in range(count))
    write_rows(
        path,
        (
            {c: row[c] for c in wanted if c in row} | answer | ({"data": name} if len(data.sources) > 1 else {})
            for (row, answer), name in zip(answers, names, strict=True)
        ),
    )
    if len(data.sources) > 1:
        options = options._replace(slices=[*options.slices, "data"])
    predictions = as_predictions(RowFile(path), asked.predictions or Path("predictions.jsonl"))
    score = figures_of if predictions.kind == "labels" else lambda some: dict(task.score(some.rows))
    found = evaluation(predictions, options, score, known)
    found["figures"] = [
        {**f, "name": "loss"} for f in found["figures"] if (f["name"], f["slice"]) == ("log_loss", "all")
    ] + found["figures"]
    if asked.robust:
        found["robustness"] = _robustness(model, task, predictions, asked, place, data.rows, folder / "changed.jsonl")
    return found


def _robustness(
    model: Model, task: RowTask, before: Predictions, asked: Asked, place: Place, rows: Rows, path: Path
) -> list[dict[str, Any]]:
    if before.kind == "other":
        raise InputError(f"--robust: is for labels, numbers and texts, not for {model.recipe.task.kind}")
    columns, found = text_columns(model.recipe), []
    for name, change in changes(asked.robust, asked.synonyms).items():
        texts = first = 0
        with path.open("w", encoding="utf-8") as file:
            for block in task.blocks(rows):
                others = changed_rows(block, columns, change, first)
                first += len(block)
                texts += sum(any(a.get(c) != b.get(c) for c in columns) for a, b in zip(block, others, strict=True))
                file.writelines(json.dumps(a, ensure_ascii=False) + "\n" for a in task.predict(model.model, others, place))
        found.append(effect_of(name, before, checked(RowFile(path), path), texts))
    return found


def _refuse_what_needs_answers(task: RowTask, asked: Asked) -> None:
    o = asked.options
    given_by = {"--slice": o.slices, "--protected": o.protected, "--threshold": o.thresholds, "--robust": asked.robust}
    for name, given in given_by.items():
        if given:
            raise InputError(f"{name}: needs an answer for each row; {task.recipe.task.kind} has a loss only")


def _of_figures(figures: dict[str, Figure], kind: str, n: int) -> dict[str, Any]:
    from zenspeed.evaluate.interval import RESAMPLES, SEED
    from zenspeed.evaluate.score import SCHEMA, VERSION

    few = [f"{n} units only: the intervals are wide and approximate below 100"] if n < 100 else []
    head = {"schema": SCHEMA, "version": VERSION, "kind": kind, "n": n, "resamples": RESAMPLES, "seed": SEED}
    return {**head, "figures": table_of(figures), "warnings": few}


def _first_rank_first(make: Callable[[], Any], place: Place) -> Any:
    """Rank 0 prepares what is cached, the others find it."""
    made = make() if place.rank == 0 else None
    if place.ranks > 1:
        dist.barrier()
    return made if place.rank == 0 else make()


# Documents ------------------------------------------------------------------------------------------------------------


def _language(model: Model, asked: Asked, place: Place) -> dict[str, Any]:
    """Figures over all documents, of each source where there are several, and of each slice of documents."""
    if asked.robust or asked.options.protected or asked.options.thresholds:
        raise InputError("--robust, --protected, --threshold: are for tasks with answers, not for language_model")
    if not asked.sources:
        if asked.options.slices:
            raise InputError("--slice: of a language model needs --data FILE")
        dataset = _first_rank_first(lambda: prepare(model.recipe), place).validation
        figures = language_figures(*_losses(model, dataset, place))
        return _of_figures(figures, "language", dataset.num_documents)
    with tempfile.TemporaryDirectory(prefix="zenspeed-evaluate-") as name:
        folder = Path(name)
        tables, all_losses = [], []
        for i, source in enumerate(asked.sources):
            losses = _losses(model, _encoded(model, source, folder / str(i)), place)
            all_losses.append(losses)
            if len(asked.sources) > 1:
                tables += table_of(language_figures(*losses), "data", source)
            if asked.options.slices:
                tables += _document_slices(model, source, asked.options.slices, folder / f"slices-{i}", place)
    whole = [np.concatenate(column) for column in zip(*all_losses, strict=True)]
    found = _of_figures(language_figures(*whole), "language", len(whole[0]))
    found["figures"] += tables
    return found


def _encoded(model: Model, source: str, folder: Path) -> TokenDataset:
    folder.mkdir()
    return encode_held_out(model.recipe.data, source, model.tokenizer, folder)


def _losses(model: Model, dataset: TokenDataset, place: Place) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(documents,) each: nats, predicted tokens, UTF-8 bytes."""
    recipe = model.recipe
    losses, tokens = document_losses(
        model.model,
        dataset,
        recipe.model.context,
        recipe.evaluate.batch_size or recipe.train.micro_batch_size or max(1, 8192 // recipe.model.context),
        place.autocast,
        place.rank,
        place.ranks,
        recipe.data.attend_across_documents,
        recipe.evaluate.overlap,
    )
    return losses, tokens, dataset.document_bytes


def _document_slices(model: Model, source: str, rules: Sequence[str], folder: Path, place: Place) -> list[dict[str, Any]]:
    data = model.recipe.data
    if source == PYTHON_DOCS or is_text(source):
        rows: list[dict[str, Any]] = [{"text": text} for text in documents(data, source)]
    else:
        options = RowOptions(columns=(data.text_column,), line_column=data.text_column, encoding=data.encoding)
        rows = [{**row, "text": str(row[data.text_column])} for row in read_rows(source, options)]
    tables = []
    folder.mkdir()
    for i, part in enumerate(slices_of(rows, rules)):
        path = folder / f"{i}.jsonl"
        write_atomically(path, "".join(json.dumps({data.text_column: rows[j]["text"]}) + "\n" for j in part.rows))
        losses = _losses(model, _encoded(model, str(path), folder / str(i)), place)
        tables += table_of(language_figures(*losses), part.name, part.value)
    return tables
