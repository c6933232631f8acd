"""zenspeed export: files that other programs open, kept only when they give the trained model's answers."""

from __future__ import annotations

import json
import re
import shlex
import shutil
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
from zenspeed.export.gguf import write_gguf
from zenspeed.export.graph import graphs_of
from zenspeed.export.probe import Probe
from zenspeed.export.run import export, verify
from zenspeed.export.targets import write_compiled, write_onnx
from zenspeed.models.build import build_model
from zenspeed.models.hf import to_huggingface
from zenspeed.models.presets import ModelConfig
from zenspeed.run import open_run
from zenspeed.text.tokenizer import Tokenizer

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
    assert "not_run" in json.loads((llama / "export-gguf" / "parity.json").read_text())  # llama_cpp is no dependency
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
    encoder = graphs_of(open_run(labels).model)["model"]
    padded = encoder(torch.nn.functional.pad(tokens, (0, 4)), torch.nn.functional.pad(mask, (0, 4)), torch.zeros(1, 11).long())
    torch.testing.assert_close(padded, encoder(tokens, mask, torch.zeros_like(tokens)))
    model = open_run(llama).model
    decoder, past = graphs_of(model)["model"], torch.zeros(2, 2, 1, 1, 0, 16)
    padded, _ = decoder(torch.nn.functional.pad(tokens, (3, 0)), torch.nn.functional.pad(mask, (3, 0)), past)
    torch.testing.assert_close(padded[:, 3:], decoder(tokens, mask, past)[0])


def drawn(more: dict[str, object], vocab_size: int = 50) -> torch.nn.Module:
    """A model whose every weight counts."""
    config = ModelConfig.model_validate({"layers": 2, "width": 32, "heads": 2, "context": 16, **more})
    torch.manual_seed(0)
    model = build_model(config, vocab_size, "language", 0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


@pytest.mark.parametrize(
    "more", [{"position": "alibi"}, {"window": 3}, {"preset": "gpt2"}, {"preset": "qwen"}, {"preset": "rezero"}]
)
def test_graph_equals_the_model(more: dict[str, object]) -> None:
    model = drawn(more)
    tokens = torch.randint(0, 50, (2, 9))
    graph, past = graphs_of(model)["model"], torch.zeros(2, 2, 2, 2, 0, 16)
    with torch.no_grad():
        first, past = graph(tokens[:, :5], torch.ones(2, 5, dtype=torch.int64), past)
        rest, _ = graph(tokens[:, 5:], torch.ones(2, 9, dtype=torch.int64), past)
        torch.testing.assert_close(torch.cat([first, rest], 1), model(tokens), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "more", [{"preset": "t5", "decoder_layers": 1}, {"preset": "transformer"}, {"architecture": "encoder_decoder"}]
)
def test_graphs_of_an_encoder_decoder(more: dict[str, object]) -> None:
    """With padding on the right of the source, on the left of the target, and a past."""
    model = drawn(more)
    graphs, layers = graphs_of(model), model.decoder.layers  # type: ignore[union-attr]
    source, tokens, one = torch.randint(0, 50, (2, 6)), torch.randint(0, 50, (2, 9)), torch.ones(2, 12, dtype=torch.int64)
    pad = torch.nn.functional.pad
    with torch.no_grad():
        source_mask = pad(one[:, :6], (0, 3))
        memory = graphs["encoder"](pad(source, (0, 3)), source_mask)
        mask, past = pad(one[:, :5], (2, 0)), torch.zeros(layers, 2, 2, 2, 0, 16)
        first, past = graphs["decoder"](pad(tokens[:, :5], (2, 0)), mask, past, source_mask, memory)
        rest, _ = graphs["decoder"](tokens[:, 5:], torch.cat([mask, one[:, :4]], 1), past, source_mask, memory)
        found, wanted = torch.cat([first[:, 2:], rest], 1), model(tokens, source=source)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("more", [{"preset": "t5"}, {"architecture": "encoder_decoder"}])
def test_onnx_of_an_encoder_decoder(more: dict[str, object], tmp_path: Path) -> None:
    model = drawn(more | {"layers": 1})
    write_onnx(model, tmp_path, None)
    rng = np.random.default_rng(0)
    probes = [Probe(rng.integers(0, 50, n), None, None, rng.integers(0, 50, n + 2)) for n in (1, 5)]
    outcome = gate.check(runtimes.Own(model), runtimes.Onnx(tmp_path, model), probes, 16, True)
    assert outcome["greedy_tokens_equal"] == 16 and outcome["largest_difference"] < 1e-4


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor compiles with g++, and there is none")
def test_a_compiled_package(llama: Path, tmp_path: Path) -> None:
    """Through the gate in its own runtime; then several texts of other lengths than it was compiled with, one padded."""
    folder = export(llama, "aoti", tmp_path / "out", say=lambda line: None)
    outcome = json.loads((folder / "parity.json").read_text())
    assert outcome["largest_difference"] < 1e-4 and outcome["greedy_tokens_equal"] > 0
    assert verify(folder) == len([p for p in folder.rglob("*") if p.is_file()]) - 1
    model = open_run(llama).model
    compiled, tokens = runtimes.Compiled(folder, model), np.random.default_rng(0).integers(5, 100, (3, 11))
    mask, past = np.ones((3, 12), np.int64), np.zeros((2, 2, 3, 1, 1, 16), np.float32)
    mask[:, 0] = mask[1, 1:5] = 0
    logits, present = compiled.run("model", {"tokens": tokens, "mask": mask, "past": past})
    own = runtimes.Own(model)
    for row, begin in ((0, 0), (1, 4), (2, 0)):
        wanted = own.output(Probe(tokens[row, begin:], None, None))
        np.testing.assert_allclose(logits[row, begin:], wanted, atol=1e-4)
    assert present.shape == (2, 2, 3, 1, 12, 16)


def test_a_compiled_package_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"no C\+\+ compiler g\+\+ on PATH; install it .* or take --to torch"):
        write_compiled(drawn({}), tmp_path)


@pytest.mark.parametrize("more", [{"preset": "llama", "kv_heads": 1}, {"preset": "gpt2"}])
def test_gguf_holds_the_model(more: dict[str, object], tmp_path: Path) -> None:
    """As its own package reads it; llama.cpp itself runs in the gate where it is installed."""
    gguf = pytest.importorskip("gguf")
    tokenizer = Tokenizer.train_bpe(["a bc abc"], 258, or_fewer=True).with_chat_template("{{ bos_token }}")
    tokenizer.save(tmp_path)
    model = drawn(more, tokenizer.vocab_size + 2)
    write_gguf(model, tokenizer, tmp_path, tmp_path / "model.gguf", "mine", "int8")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    held = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    assert held["tokenizer.ggml.pre"] == "kimi-k2" and held["tokenizer.chat_template"] == "{{ bos_token }}"
    assert held["tokenizer.ggml.tokens"][tokenizer.end_of_text] == "<|endoftext|>"
    assert held["tokenizer.ggml.token_type"][-3:] == [1, 5, 5]
    weights = dict(model.named_parameters())
    up = weights["blocks.1.feed_forward.up.weight"].detach().numpy()
    named = ["ffn_gate", "ffn_up"] if more["preset"] == "llama" else ["ffn_up"]
    np.testing.assert_allclose(np.concatenate([tensors[f"blk.1.{n}.weight"] for n in named]), up, atol=0.02)
    if more["preset"] == "llama":  # neighbouring features turn together: rows 0, 8, 1, 9 … of a head of 16
        q = weights["blocks.0.attention.qkv.weight"].detach().numpy()[16:32]
        np.testing.assert_allclose(tensors["blk.0.attn_q.weight"][16:20], q[[0, 8, 1, 9]], atol=0.02)


@pytest.mark.parametrize(
    ("more", "words"),
    [({"preset": "gpt"}, "qk_norm False"), ({"preset": "t5"}, "decoders"), ({"preset": "llama", "window": 4}, "window")],
)
def test_what_gguf_refuses(more: dict[str, object], words: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train_char(["abc"])
    tokenizer.save(tmp_path)
    with pytest.raises(InputError, match=words):
        write_gguf(drawn(more), tokenizer, tmp_path, tmp_path / "model.gguf", "mine", None)
    with pytest.raises(InputError, match="byte-level BPE"):
        write_gguf(drawn({"preset": "llama"}), tokenizer, tmp_path, tmp_path / "model.gguf", "mine", None)


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
    monkeypatch.setitem(runtimes.OF_GRAPHS, "torch", lambda path, model: _Wrong(model))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not kept"):
        export(llama, "torch", tmp_path / "out", say=lambda line: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "weight", "in_transformers", "in_a_graph"),
    [
        ({"preset": "llama"}, "blocks.1.feed_forward.down.weight", "layer 1", "keys and values of layer 2"),
        ({"preset": "bert"}, "body.blocks.1.attention.out.weight", "layer 1", None),
        ({"preset": "t5"}, "decoder.blocks.1.cross.out.weight", "decoder layer 1", "keys and values of layer 2"),
        ({"preset": "t5"}, "encoder.blocks.0.attention.out.weight", "encoder layer 0", "encoder"),
        ({"preset": "gpt2"}, "norm.weight", "last layer or behind", "behind the last layer"),
    ],
)
def test_the_first_layer_that_differs_is_named(
    more: dict[str, str], weight: str, in_transformers: str, in_a_graph: str | None, tmp_path: Path
) -> None:
    """A weight of the exported file is another."""
    kind = {"bert": "masked_lm", "t5": "seq2seq"}.get(more["preset"], "language_model")
    config = ModelConfig.model_validate({"layers": 3, "width": 32, "heads": 2, "context": 16, "dropout": 0.0, **more})
    right, wrong = (build_model(config, 50, "masked" if kind == "masked_lm" else "language", 0).eval() for _ in range(2))
    with torch.no_grad():
        for model in (right, wrong):
            generator = torch.Generator().manual_seed(1)
            for p in model.parameters():
                p.normal_(std=0.3, generator=generator)
        dict(wrong.named_parameters())[weight].mul_(1.1)
    probe = Probe(np.arange(10, 20), np.zeros(10, np.int64) if kind == "masked_lm" else None, None)
    probe = probe._replace(source=np.arange(5, 12)) if kind == "seq2seq" else probe
    to_huggingface(wrong, tmp_path)
    others = {in_transformers: runtimes.Transformers(tmp_path, kind, "first", False)}
    if in_a_graph is not None:
        write_onnx(wrong, tmp_path, None)
        others[in_a_graph] = runtimes.Onnx(tmp_path, right)
    for words, other in others.items():
        with pytest.raises(InputError, match=rf"first at token \d+ .*; first .*{words}"):
            gate.check(runtimes.Own(right), other, [probe], 16, False)


def test_what_is_refused(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for arguments, words in (
        (["--to", "tflite"], "tflite"),
        (["--quantize", "int3", "--to", "onnx"], "int3"),
        (["--quantize", "int8"], "is for --to onnx and gguf"),
        (["--to", "gguf", "--runtime-python", "/no/python"], "/no/python"),
        (["--out", str(tmp_path)], "holds other files"),
        (["--verify"], "checksums.json"),
    ):
        done = CliRunner().invoke(app, ["export", str(llama), *arguments])
        assert isinstance(done.exception, InputError) and words in str(done.exception), (arguments, done.output)
