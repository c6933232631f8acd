"""Our encoder and its heads against Hugging Face's BERT and RoBERTa, and packed against padded against one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from zenspeed.config import InputError
from zenspeed.models.build import Model, build_model
from zenspeed.models.hf import from_huggingface, load_huggingface, to_huggingface
from zenspeed.models.presets import ModelConfig
from zenspeed.ops.loss import IGNORE

transformers = pytest.importorskip("transformers")
VOCAB, LENGTHS = 97, (9, 3, 17, 1, 12)
CLASSES = {"masked": "MaskedLM", "label": "SequenceClassification", "span": "QuestionAnswering", "embedding": "Model"}
FIELD = {"masked": "logits", "label": "logits", "embedding": "last_hidden_state"}


def hf_model(kind: str, head: str, **fields: Any) -> Any:
    torch.manual_seed(3)
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 72}
    options = sizes | {"vocab_size": VOCAB, "max_position_embeddings": 48, "initializer_range": 0.3} | fields
    options |= {"num_labels": 3} if head == "label" else {}
    config = getattr(transformers, f"{kind}Config")(**options)
    name = CLASSES[head] if head == "embedding" else f"For{CLASSES[head]}"
    model = getattr(transformers, kind + name)(config).eval()
    with torch.no_grad():  # norms start at 1 and biases at 0, which would hide a mix-up
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def some_texts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCAB, (n,), generator=generator) for n in LENGTHS]


def padded(texts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    tokens = torch.zeros(len(texts), max(LENGTHS) + 2, dtype=torch.int64)
    documents = torch.full_like(tokens, -1)
    for row, text in enumerate(texts):
        tokens[row, : len(text)], documents[row, : len(text)] = text, row
    return {"tokens": tokens, "documents": documents}


def packed(texts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Texts 2 and 0 in a row, then 4, 3 and 1: their numbers are not in the order of their places."""
    tokens, documents = torch.zeros(2, 28, dtype=torch.int64), torch.full((2, 28), -1)
    for row, column, text in ((0, 0, 2), (0, 17, 0), (1, 0, 4), (1, 12, 3), (1, 13, 1)):
        place = slice(column, column + LENGTHS[text])
        tokens[row, place], documents[row, place] = texts[text], text
    return {"tokens": tokens, "documents": documents}


def by_document(x: torch.Tensor, documents: torch.Tensor) -> list[torch.Tensor]:
    return [x[documents == number] for number in range(len(LENGTHS))]


def scrambled(head: str, preset: str = "bert", labels: int = 3, **fields: Any) -> Any:
    options = {"layers": 2, "width": 32, "heads": 4, "context": 48, "dropout": 0.0} | fields
    model = build_model(ModelConfig(preset=preset, **options), VOCAB, head, labels)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + ("norm" in name))
    return model.eval()


@pytest.mark.parametrize("head", CLASSES)
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("Bert", {}),
        ("Bert", {"hidden_act": "gelu_new", "tie_word_embeddings": False, "type_vocab_size": 3}),
        ("Roberta", {"type_vocab_size": 1}),
    ],
    ids=["bert", "bert-untied", "roberta"],
)
def test_outputs_equal_hugging_face_both_ways(kind: str, head: str, fields: dict[str, Any], tmp_path: Path) -> None:
    theirs = hf_model(kind, head, **fields)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = load_huggingface(tmp_path / "theirs")
    ours = loaded.model
    assert isinstance(ours, Model)
    assert ours.kind == head
    assert not loaded.report.missing
    assert not loaded.report.initialised
    to_huggingface(ours, tmp_path / "ours")
    again = type(theirs).from_pretrained(tmp_path / "ours").eval()
    pad = theirs.config.pad_token_id
    texts = some_texts()
    inputs = padded(texts)
    mask = (inputs["documents"] >= 0).long()
    types = torch.arange(inputs["tokens"].shape[1]).expand_as(mask) % 2 if kind == "Bert" else torch.zeros_like(mask)
    their_inputs = {
        "input_ids": inputs["tokens"].masked_fill(mask == 0, pad), "attention_mask": mask, "token_type_ids": types
    }  # fmt: skip

    def output(model: Any) -> torch.Tensor:
        with torch.no_grad():
            out = model(**their_inputs)
        if head == "span":
            return torch.stack([out.start_logits, out.end_logits], -1)[mask == 1]
        return out[0] if head == "label" else out[0][mask == 1]

    with torch.no_grad():
        expected = output(theirs)
        if head == "embedding":
            got = ours.body.hidden_states(**inputs, token_types=types)[mask == 1]
        else:
            got = ours(**inputs, token_types=types)
            got = got if head == "label" else got[mask == 1]
    assert expected.std() > 0.3, "outputs that hardly vary would agree whatever we do"
    assert (got - expected).abs().max() <= 1e-4
    assert (output(again) - expected).abs().max() <= 1e-4
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("theirs", "ours"))
    for name in after.keys() & before.keys():
        kept = slice(2 if kind == "Roberta" and "position_embeddings" in name else 0, None)
        assert torch.equal(before[name][kept], after[name][kept])


@pytest.mark.parametrize("preset", ["bert", "roberta", "gpt", "llama"])
@pytest.mark.parametrize("head", ["label", "span", "embedding", "masked"])
def test_packed_equals_padded_equals_one_by_one(preset: str, head: str) -> None:
    if head == "masked" and preset not in ("bert", "roberta"):
        return
    model, texts = scrambled(head, preset), some_texts()
    count = {"num_documents": len(texts)}
    with torch.no_grad():
        alone = [model(text[None]) for text in texts]
        for inputs in (padded(texts), packed(texts)):
            out = model(**inputs, **count)
            assert torch.isfinite(out).all()
            parts = list(out) if head in ("label", "embedding") else by_document(out, inputs["documents"])
            for part, single in zip(parts, alone, strict=True):
                torch.testing.assert_close(part, single[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("head", ["label", "span", "masked"])
def test_loss_is_the_cross_entropy_of_the_logits(head: str) -> None:
    model, texts = scrambled(head), some_texts()
    inputs = packed(texts)
    documents = inputs["documents"]
    logits = model(**inputs, num_documents=5)
    if head == "label":
        targets = torch.tensor([0, 2, IGNORE, 1, 1])
        each = F.cross_entropy(logits, targets, reduction="none")
    elif head == "masked":
        targets = torch.where((torch.arange(28) % 3 == 0) & (documents >= 0), inputs["tokens"], IGNORE)
        each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    else:
        targets = torch.tensor([[19, 20], [41, 42], [0, 16], [40, 40], [IGNORE, IGNORE]])
        each = torch.zeros(5)
        for number in range(4):
            inside = (documents.flatten() == number).nonzero().squeeze(1)
            own = logits.flatten(0, 1)[inside].log_softmax(0)
            for end in (0, 1):
                each[number] -= own[inside.tolist().index(int(targets[number, end])), end]
    wanted = torch.autograd.grad(each.sum(), list(model.parameters()), allow_unused=True)
    loss = model(**inputs, num_documents=5, targets=targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, each.sum(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(model(**inputs, num_documents=5, targets=targets, reduction="none"), each, atol=1e-5, rtol=1e-5)
    got = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    for (name, _), a, b in zip(model.named_parameters(), got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3, msg=name)


def test_regression_is_the_squared_error() -> None:
    model, inputs = scrambled("label", labels=1), packed(some_texts())
    targets = torch.tensor([0.5, -2.0, 1.0, 0.0, 3.0])
    out = model(**inputs, num_documents=5)
    assert out.shape == (5, 1)
    torch.testing.assert_close(model(**inputs, num_documents=5, targets=targets), (out[:, 0] - targets).square().sum())


@pytest.mark.parametrize("pool", ["first", "mean", "last"])
def test_pooling(pool: str) -> None:
    model, texts = scrambled("embedding", pool=pool), some_texts()
    vectors = model(**packed(texts), num_documents=5)
    assert vectors.shape == (5, 32)
    for vector, text in zip(vectors, texts, strict=True):
        hidden = model.body.hidden_states(text[None])[0]
        chosen = {"first": hidden[0], "mean": hidden.mean(0), "last": hidden[-1]}[pool]
        torch.testing.assert_close(vector, chosen / chosen.norm(), atol=1e-5, rtol=1e-4)


def test_a_new_head_on_an_old_body_is_told(tmp_path: Path) -> None:
    theirs = hf_model("Bert", "masked")
    theirs.save_pretrained(tmp_path)
    loaded = load_huggingface(tmp_path, "label", labels=5, seed=1)
    assert not loaded.report.missing
    assert sorted(loaded.report.initialised) == [
        "head.pooler.bias",
        "head.pooler.weight",
        "head.score.bias",
        "head.score.weight",
    ]
    assert all(name.startswith("cls.") for name in loaded.report.unused)
    assert loaded.report.unused
    assert "4 weights new, to be trained: head.pooler" in str(loaded.report)
    weight = loaded.model.head.score.weight  # type: ignore[union-attr]
    assert weight.shape == (5, 32)
    assert 0.01 < weight.std() < 0.03  # type: ignore[operator]
    again = load_huggingface(tmp_path, "label", labels=5, seed=1).model
    assert torch.equal(again.head.score.weight, weight)  # type: ignore[union-attr, arg-type]


def test_a_head_with_another_number_of_labels_is_new(tmp_path: Path) -> None:
    hf_model("Roberta", "label").save_pretrained(tmp_path)
    loaded = load_huggingface(tmp_path, labels=2)
    assert loaded.report.initialised == ["head.score.bias", "head.score.weight"]
    assert "classifier.out_proj.weight (3, 32)" in loaded.report.unused
    assert load_huggingface(tmp_path).model.labels == 3


def test_missing_weights_of_the_body_are_named(tmp_path: Path) -> None:
    hf_model("Bert", "label").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["bert.encoder.layer.1.output.dense.bias"]
    tensors["bert.encoder.layer.7.extra"] = torch.zeros(3)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError) as error:
        load_huggingface(tmp_path)
    assert "1 missing: bert.encoder.layer.1.output.dense.bias" in str(error.value)
    assert "1 left over: bert.encoder.layer.7.extra (3,)" in str(error.value)
    del tensors["bert.encoder.layer.7.extra"]
    save_file(tensors, tmp_path / "model.safetensors")
    report = load_huggingface(tmp_path, strict=False).report
    assert report.missing == ["body.blocks.1.feed_forward.down.bias"]


def test_old_names_of_norms_and_a_head_that_is_not_there(tmp_path: Path) -> None:
    theirs = hf_model("Bert", "embedding")
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    renames = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old = dict(tensors)
    for new_name, old_name in renames.items():
        old = {name.replace(new_name, old_name): tensor for name, tensor in old.items()}
    save_file(old, tmp_path / "model.safetensors")
    text = some_texts()[0][None]
    with torch.no_grad():
        hidden = load_huggingface(tmp_path).model.body.hidden_states(text)  # type: ignore[union-attr, operator]
        assert (hidden - theirs(text).last_hidden_state).abs().max() <= 1e-4
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    with pytest.raises(InputError, match=r"5 missing: head\.bias, head\.norm"):
        from_huggingface(tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"hidden_act": "silu"}, "hidden_act 'silu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not supported"),
        ({"is_decoder": True}, "is_decoder True is not supported"),
    ],
)
def test_options_that_we_do_not_have_are_refused(change: dict[str, Any], expected: str, tmp_path: Path) -> None:
    hf_model("Bert", "masked").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=expected):
        load_huggingface(tmp_path)


def test_heads_that_an_architecture_cannot_have_are_refused() -> None:
    encoder, decoder = ModelConfig(preset="bert"), ModelConfig(preset="gpt")
    with pytest.raises(InputError, match="an encoder sees the token it would predict"):
        build_model(encoder, VOCAB, "language")
    with pytest.raises(InputError, match="a decoder does not see what follows"):
        build_model(decoder, VOCAB, "masked")
    with pytest.raises(InputError, match="labels 0"):
        build_model(encoder, VOCAB, "label")


def test_a_decoder_under_a_label_head_is_hugging_faces(tmp_path: Path) -> None:
    torch.manual_seed(2)
    options = {"vocab_size": VOCAB, "num_labels": 3, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 72}
    config = transformers.LlamaConfig(**sizes, **options, max_position_embeddings=48, initializer_range=0.3)
    theirs = transformers.LlamaForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_huggingface(tmp_path / "theirs").model
    to_huggingface(ours, tmp_path / "ours")
    again = transformers.LlamaForSequenceClassification.from_pretrained(tmp_path / "ours", pad_token_id=0).eval()
    inputs = padded(some_texts())
    mask = (inputs["documents"] >= 0).long()
    with torch.no_grad():
        expected = theirs(input_ids=inputs["tokens"], attention_mask=mask).logits
        assert (ours(**inputs) - expected).abs().max() <= 1e-4
        assert (again(input_ids=inputs["tokens"], attention_mask=mask).logits - expected).abs().max() <= 1e-4
