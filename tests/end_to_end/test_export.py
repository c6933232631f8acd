"""zenspeed export: files that other programs open, kept only when they give the trained model's answers."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.end_to_end.conftest import command, environment
from tests.end_to_end.test_tasks import write
from zenspeed.cli import app
from zenspeed.config import InputError
from zenspeed.export import gate, runtimes
from zenspeed.export.graph import graph_of
from zenspeed.export.probe import Probe
from zenspeed.export.run import export, verify
from zenspeed.models.build import build_model
from zenspeed.models.presets import ModelConfig
from zenspeed.run import open_run

ROOT = Path(__file__).parents[2]
SMALL = [
    "model.layers=2", "model.width=32", "model.heads=2", "model.context=32", "train.precision=fp32", "evaluate.every=0",
    "sample.max_tokens=4", "log.tensorboard=false",
]  # fmt: skip


def train(folder: Path, source: Path, cache: Path, *sets: str) -> Path:
    import subprocess

    options = [part for key in [*SMALL, *sets, f"run.folder={folder}", f"data.cache={cache}"] for part in ("--set", key)]
    done = subprocess.run(command("train", source, *options), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, corpus: Path, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("export") / "llama"
    more = ["model.preset=llama", "model.kv_heads=1", "tokenizer.vocab_size=320", "train.steps=6", "train.batch_size=8"]
    return train(folder, corpus, cache, *more)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("export")
    write(folder / "reviews.csv", 90, 1)
    recipe = ROOT / "recipes" / "classify.yaml"
    more = [f"data.source={folder / 'reviews.csv'}", "task.text=review", "task.label=sentiment", "train.epochs=1"]
    return train(folder / "labels", recipe, cache, *more, "tokenizer.vocab_size=200")


def test_the_commands_of_the_page(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/export.md, in its order: every target of a decoder, in its own runtime."""
    (tmp_path / "out").symlink_to(llama)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    commands = [shlex.split(line) for block in re.findall(r"```bash\n(.*?)```", page, re.S) for line in block.splitlines()]
    for words in commands:
        done = CliRunner().invoke(app, words[1:])
        assert words[:2] == ["zenspeed", "export"] and done.exit_code == 0, (words, done.output, done.exception)
    for target in ("hf", "onnx", "torch"):
        outcome = json.loads((llama / f"export-{target}" / "parity.json").read_text())
        assert outcome["largest_difference"] < 1e-4 and outcome["greedy_tokens_equal"] > 0
    assert "difference" in json.loads((tmp_path / "out-int8" / "parity.json").read_text())["figures"]
    folder = llama / "export-hf"
    card = (folder / "README.md").read_text()
    assert "license: apache-2.0" in card and "bits per byte" in card
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match=r"model.safetensors: is not the file"):
        verify(folder)


def test_labels_and_quantization(labels: Path, tmp_path: Path) -> None:
    said: list[str] = []
    export(labels, "hf", tmp_path / "hf", say=said.append)
    folder = export(labels, "onnx", tmp_path / "int4", quantize="int4", say=said.append)
    figures = json.loads((folder / "parity.json").read_text())["figures"]
    assert figures["difference"]["low"] <= figures["difference"]["value"] <= figures["difference"]["high"]
    assert abs(figures["difference"]["value"]) < 0.5
    assert any(line.startswith("difference") for line in said)


def test_padding_changes_no_answer(labels: Path, llama: Path) -> None:
    """The graphs with a mask: right padding of an encoder's texts, left padding of a decoder's."""
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(5, 100, (1, 7)))
    mask = torch.ones(1, 7, dtype=torch.int64)
    encoder = graph_of(open_run(labels).model)
    padded = encoder(torch.nn.functional.pad(tokens, (0, 4)), torch.nn.functional.pad(mask, (0, 4)), torch.zeros(1, 11).long())
    torch.testing.assert_close(padded, encoder(tokens, mask, torch.zeros_like(tokens)))
    model = open_run(llama).model
    decoder, past = graph_of(model), torch.zeros(2, 2, 1, 1, 0, 16)
    padded, _ = decoder(torch.nn.functional.pad(tokens, (3, 0)), torch.nn.functional.pad(mask, (3, 0)), past)
    torch.testing.assert_close(padded[:, 3:], decoder(tokens, mask, past)[0])


@pytest.mark.parametrize(
    "more", [{"position": "alibi"}, {"window": 3}, {"preset": "gpt2"}, {"preset": "qwen"}, {"preset": "rezero"}]
)
def test_graph_equals_the_model(more: dict[str, object]) -> None:
    config = ModelConfig.model_validate({"layers": 2, "width": 32, "heads": 2, "context": 16, **more})
    model = build_model(config, 50, "language", 0)
    model.init_weights(0)  # type: ignore[operator]
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model.eval()
    tokens = torch.randint(0, 50, (2, 9))
    graph, past = graph_of(model), torch.zeros(2, 2, 2, 2, 0, 16)
    with torch.no_grad():
        first, past = graph(tokens[:, :5], torch.ones(2, 5, dtype=torch.int64), past)
        rest, _ = graph(tokens[:, 5:], torch.ones(2, 9, dtype=torch.int64), past)
        torch.testing.assert_close(torch.cat([first, rest], 1), model(tokens), atol=1e-5, rtol=1e-4)


class _Wrong(runtimes.Own):
    """Answers as the model does, but for one token."""

    def output(self, probe: Probe) -> np.ndarray:
        found = super().output(probe).copy()
        found[3] += 1.0
        return found


def test_another_answer_is_named_and_nothing_is_kept(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_run(llama).model
    probe = Probe(np.arange(10, 20), None, None)
    with pytest.raises(InputError, match=r"probe 0, first at token 3 \(13\)"):
        gate.check(runtimes.Own(model), _Wrong(model), [probe], 32, True)
    monkeypatch.setattr("zenspeed.export.run.runtimes.Program", lambda path, model: _Wrong(model))
    with pytest.raises(InputError, match="not kept"):
        export(llama, "torch", tmp_path / "out", say=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for arguments, words in (
        (["--to", "tflite"], "tflite"),
        (["--quantize", "int3", "--to", "onnx"], "int3"),
        (["--quantize", "int8"], "is for --to onnx"),
        (["--out", str(tmp_path)], "holds other files"),
        (["--verify"], "checksums.json"),
    ):
        done = CliRunner().invoke(app, ["export", str(llama), *arguments])
        assert isinstance(done.exception, InputError) and words in str(done.exception), (arguments, done.output)
