"""index, search, answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zenspeed.cli.app import app, write_json
from zenspeed.errors import InputError

if TYPE_CHECKING:
    from zenspeed.retrieve.answer import Found, Threshold
    from zenspeed.retrieve.index import How, Index

IndexFolder = Annotated[Path, typer.Argument(help="An index's folder.", show_default=False)]
Model = Annotated[
    Path | None,
    typer.Option("--run", help="Model of the vectors: a run of task similarity, or a folder of Hugging Face layout."),
]
HowOption = Annotated[str | None, typer.Option(help="words (BM25), vectors or both; default: both, where there are vectors.")]
JsonPath = Annotated[Path | None, typer.Option("--json", help="Writes what was found to this file.")]
_SHARES = (1.0, 0.95, 0.9, 0.8)  # of F1 without refusing, for which the threshold is shown beside the one chosen
_WIDTH = 160  # characters of a passage in the terminal


@app.command()
def index(
    documents: Annotated[str, typer.Argument(help="Rows or text files: file, folder, glob, python-docs.", show_default=False)],
    folder: IndexFolder,
    run: Model = None,
    text: Annotated[str, typer.Option(help="Column of the text, of rows.")] = "text",
    passage_characters: Annotated[int, typer.Option(min=50, help="A passage has so many characters, to twice as many.")] = 600,
) -> None:
    """Make documents searchable: by their words, and with a model by what they mean."""
    from zenspeed.retrieve.documents import read_documents
    from zenspeed.retrieve.embed import open_embedder
    from zenspeed.retrieve.index import build_index

    embedder = open_embedder(run) if run else None
    made = build_index(read_documents(documents, text), embedder, passage_characters)
    made.save(folder)
    vectors = f"vectors of {run}" if run else "no vectors; give --run RUN for them"
    print(f"{folder}: {len(made.documents):,} documents, {len(made):,} passages, by words; {vectors}")


@app.command()
def search(
    folder: IndexFolder,
    query: Annotated[str, typer.Argument(help="What is looked for.", show_default=False)],
    k: Annotated[int, typer.Option("-k", min=1, help="Passages to show.")] = 5,
    how: HowOption = None,
    run: Model = None,
    json_path: JsonPath = None,
) -> None:
    """The passages of an index that go with a text, best first."""
    (hits,) = _open(folder, run, how).search([query], k, _how(how))
    for rank, hit in enumerate(hits, 1):
        print(f"{rank}  {hit.score:.3f}  {hit.document.id} [{hit.start}:{hit.end}]  {_shorten(hit.text)}")
    if not hits:
        print("nothing found: no passage holds a word of it")
    write_json(json_path, [hit.as_dict() for hit in hits])


@app.command()
def answer(
    folder: IndexFolder,
    question: Annotated[str | None, typer.Argument(help="A question.", show_default=False)] = None,
    reader: Annotated[
        Path | None,
        typer.Option(
            help="A run of task span_qa, or a folder of Hugging Face layout; default: the column answer of the document found."
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Passages in which the answer is looked for.")] = 5,
    how: HowOption = None,
    run: Model = None,
    refuse_below: Annotated[
        float | None, typer.Option(help="Score below which there is no answer; default: the index's.")
    ] = None,
    questions: Annotated[
        str | None,
        typer.Option(help="Rows question, answer (empty: there is none) and document: figures instead of an answer."),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="With --questions: chooses refuse_below by them and keeps it in the index.")
    ] = False,
    keep: Annotated[
        float | None,
        typer.Option(
            help="With --calibrate: refuses as much as leaves this share of F1, such as 0.95; default: both weigh alike."
        ),
    ] = None,
    json_path: JsonPath = None,
) -> None:
    """The answer to a question out of an index, or "not found"."""
    if (question is None) == (questions is None):
        raise InputError("answer: give a question, or --questions FILE; one of them")
    if calibrate and questions is None:
        raise InputError("--calibrate: needs --questions FILE, with and without answers")
    if keep is not None and not calibrate:
        raise InputError("--keep: says how --calibrate chooses; give --calibrate too")
    from zenspeed.retrieve.answer import answer as find
    from zenspeed.retrieve.answer import hits_without_answer
    from zenspeed.retrieve.embed import open_reader

    opened = _open(folder, run, how)
    read = open_reader(reader) if reader else None
    if question is not None:
        (found,) = find(opened, [question], read, k=k, how=_how(how), refuse_below=refuse_below)
        print(_said(found))
        write_json(json_path, found.as_dict())
        return
    assert questions is not None
    rows = _questions(questions)
    asked = [row["question"] for row in rows]
    found_all = find(opened, asked, read, k=k, how=_how(how), refuse_below=refuse_below)
    if calibrate:
        known = [row["references"] for row in rows], [row["document"] for row in rows]
        hits = hits_without_answer(opened, asked, *known, k, _how(how))
        without = find(opened, asked, read, hits=hits, refuse_below=refuse_below)
        found_all = _calibrated(folder, opened, found_all, without, known[0], keep)
    _show_figures(found_all, rows, json_path)


def _open(folder: Path, run: Path | None, how: str | None) -> Index:
    from zenspeed.retrieve.index import open_index

    return open_index(folder, run, vectors=how != "words")


def _how(how: str | None) -> How | None:
    if how not in (None, "words", "vectors", "both"):
        raise InputError(f"--how: {how!r} is not known; give words, vectors or both")
    return how  # type: ignore[return-value]


def _questions(source: str) -> list[dict[str, Any]]:
    """Rows with `references`, the accepted answers."""
    from zenspeed.data.rows import RowOptions, read_rows

    rows = []
    for row in read_rows(source, RowOptions(columns=("question", "answer"))):
        given: Any = row["answer"]
        texts = given.get("text", []) if isinstance(given, dict) else given if isinstance(given, list) else [given]
        accepted = [str(text) for text in texts if text is not None and str(text).strip()]
        document = str(row["document"]) if row.get("document") not in (None, "") else None
        rows.append({"question": str(row["question"]), "references": accepted, "document": document})
    return rows


def _calibrated(
    folder: Path, opened: Index, found: list[Found], without: list[Found], references: list[list[str]], keep: float | None
) -> list[Found]:
    """The answers at the threshold that is chosen, kept and shown beside others."""
    from zenspeed.retrieve.answer import calibrate

    chosen = calibrate(found, references, without, keep=keep)
    opened.settings["refuse_below"] = chosen.refuse_below
    opened.save_settings(folder)
    others = [calibrate(found, references, without, keep=share) for share in _SHARES]
    print(f"{chosen.with_answer} questions with an answer, {chosen.without_answer} without: those asked again among them")
    print("refuse_below  answered  f1     refused rightly")
    for one in sorted({*others, chosen}, key=lambda one: one.refuse_below):
        print(_line_of(one) + ("  chosen" if one == chosen else ""))
    print(
        f"refuse_below {chosen.refuse_below:.4f}, kept in {folder}; figures on the same questions are too good, judge by others"
    )
    return [one._replace(answer=one.best if one.score >= chosen.refuse_below else "") for one in found]


def _line_of(one: Threshold) -> str:
    return f"{one.refuse_below:<12.4f}  {one.answered:<8.3f}  {one.f1:.3f}  {one.refused:.3f}"


def _show_figures(found: list[Found], rows: list[dict[str, Any]], json_path: Path | None) -> None:
    from zenspeed.retrieve.answer import judge

    figures = judge(found, [row["references"] for row in rows], [row["document"] for row in rows])
    width = max(map(len, figures))
    for name, figure in figures.items():
        print(f"{name:<{width}}  {figure}")
    predictions = [one.as_dict() | {"reference": (row["references"] or [""])[0]} for one, row in zip(found, rows, strict=True)]
    write_json(json_path, {"figures": {k: v._asdict() for k, v in figures.items()}, "predictions": predictions})


def _said(found: Found) -> str:
    if not found.found:
        return "not found" + (f" (the likeliest was {_shorten(found.best)!r}, score {found.score:.3f})" if found.best else "")
    place = "" if found.start is None else f" [{found.start}:{found.end}]"
    return f"{found.answer}\n  {found.document}{place}, score {found.score:.3f}"


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"
