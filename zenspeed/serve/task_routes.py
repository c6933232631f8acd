"""Endpoints of tasks: labels, vectors, written text, answers, search."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from zenspeed.serve import answers
from zenspeed.serve.deploy import Models, Served
from zenspeed.serve.limits import Limits
from zenspeed.serve.metrics import Metrics
from zenspeed.serve.shapes import (
    AnswerRequest,
    ClassifyRequest,
    EmbeddingRequest,
    Problem,
    SearchRequest,
    TextRequest,
)
from zenspeed.serve.vectors import decode_vector, encode_vector

PASSAGES = 5
"""Of an index, in which an answer is looked for."""


def add_task_routes(app: FastAPI, models: Models, limits: Limits, metrics: Metrics) -> None:
    """Adds them to `app`."""

    def texts_of(given: str | list[str], name: str = "input") -> list[str]:
        texts = [given] if isinstance(given, str) else given
        if not 1 <= len(texts) <= limits.inputs:
            raise Problem(400, f"{name}: {len(texts)} texts; at least 1, at most {limits.inputs}", param=name)
        if any(not text.strip() for text in texts):
            raise Problem(400, f"{name}: an empty text", param=name)
        return texts

    async def ask(served: Served, op: str, rows: list[Any]) -> tuple[list[Any], int]:
        values, tokens = await answers.rows(served, {"op": op, "rows": rows})
        metrics.tokens(served.name, tokens, 0)
        return values, tokens

    async def write(served: Served, body: TextRequest) -> dict[str, Any]:
        rows = [{"text": text, "controls": body.controls} for text in texts_of(body.input)]
        return _list(served, *await ask(served, "predict", rows))

    @app.post("/v1/embeddings", response_model=None)
    async def embeddings(body: EmbeddingRequest) -> JSONResponse:
        """Vectors of length 1."""
        served = models.find(body.model, "embeddings")
        vectors, tokens = await ask(served, "embed", texts_of(body.input))
        data = []
        for index, vector in enumerate(vectors):
            array = decode_vector(vector)
            if body.dimensions is not None:
                if body.dimensions > len(array):
                    raise Problem(
                        400, f"dimensions: {body.dimensions}; this model's vectors have {len(array)}", param="dimensions"
                    )
                array = array[: body.dimensions]
                array = array / max(float(np.linalg.norm(array)), 1e-12)
            coded = encode_vector(array) if body.encoding_format == "base64" else array.tolist()
            data.append({"object": "embedding", "index": index, "embedding": coded})
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": served.name, "usage": usage})

    @app.post("/v1/classify")
    async def classify(body: ClassifyRequest) -> dict[str, Any]:
        """A label for each text, with the probability of every label; `explain`: which words mattered."""
        served, texts = models.find(body.model, "classify"), texts_of(body.input)
        if body.explain and len(texts) > 1:
            raise Problem(400, "explain: is for one text at a time", param="explain")
        rows: list[dict[str, str]] = [{"text": text} for text in texts]
        if body.pair is not None:
            pairs = texts_of(body.pair, "pair")
            if len(pairs) != len(texts):
                raise Problem(400, f"pair: {len(pairs)} texts for {len(texts)} of input", param="pair")
            rows = [{**row, "pair": pair} for row, pair in zip(rows, pairs, strict=True)]
        results, tokens = await ask(served, "words" if body.explain else "predict", rows)
        return _list(served, results, tokens)

    @app.post("/v1/translate")
    async def translate(body: TextRequest) -> dict[str, Any]:
        """Each text in the language that the model was trained to write."""
        return await write(models.find(body.model, "translate"), body)

    @app.post("/v1/summarize")
    async def summarize(body: TextRequest) -> dict[str, Any]:
        """A summary of each text."""
        return await write(models.find(body.model, "summarize"), body)

    @app.post("/v1/answer")
    async def answer(body: AnswerRequest) -> dict[str, Any]:
        """The answer to a question; with a context, where in it the answer stands (characters `start` to `end`)."""
        served = models.find(body.model, "answer")
        if _is_index(served):
            if body.context is not None or body.controls is not None:
                raise Problem(400, f"context, controls: {served.name} is an index; give a question alone", param="context")
            rows = [{"question": texts_of(body.question, "question")[0], "k": PASSAGES}]
            found, tokens = await ask(served, "ask", rows)
            return {**found[0], "model": served.name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
        row = {"question": texts_of(body.question, "question")[0], "context": body.context, "controls": body.controls}
        results, tokens = await ask(served, "predict", [row])
        return {**results[0], "model": served.name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}

    @app.post("/v1/search")
    async def search(body: SearchRequest, request: Request) -> dict[str, Any]:
        """The documents nearest to the query, by the cosine of their vectors; of an index its passages, by words as well."""
        served = models.find(body.model, "search")
        if _is_index(served) != (body.documents is None):
            which = "is an index; leave documents out" if _is_index(served) else "has no documents of its own; give documents"
            raise Problem(400, f"documents: {served.name} {which}", param="documents")
        if body.documents is None:
            found, tokens = await ask(served, "find", [{"query": texts_of(body.query, "query")[0], "k": body.top}])
            return _list(served, [{"index": rank, **hit} for rank, hit in enumerate(found[0])], tokens)
        texts = [*texts_of(body.query, "query"), *texts_of(body.documents, "documents")]
        vectors, tokens = await ask(served, "embed", texts)
        array = np.stack([decode_vector(vector) for vector in vectors])
        scores = array[1:] @ array[0]
        best = np.argsort(-scores, kind="stable")[: body.top]
        data = [{"index": int(i), "score": round(float(scores[i]), 6), "document": body.documents[i]} for i in best]
        return _list(served, data, tokens)


def _is_index(served: Served) -> bool:
    return bool(served.info["card"]["kind"] == "index")


def _list(served: Served, data: list[Any], tokens: int) -> dict[str, Any]:
    return {"object": "list", "data": data, "model": served.name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
