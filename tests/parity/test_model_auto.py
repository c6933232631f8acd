"""Models through transformers' own classes: the same outputs as calling them directly, packed or padded, loaded or reopened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from zenspeed.config import InputError
from zenspeed.models.auto import AutoTransformer, fetch, load_pretrained
from zenspeed.models.build import Model, build_model
from zenspeed.ops.loss import IGNORE

transformers = pytest.importorskip("transformers")
VOCAB, LENGTHS = 97, (9, 3, 17, 1, 12)
SMALL = {
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 72, "max_position_embeddings": 48},
    "GPTNeoX": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 72},
    "Bart": {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 72, "decoder_ffn_dim": 72, "max_position_embeddings": 48,
    },
}  # fmt: skip
CLASSES = {
    "masked": ("DistilBert", "ForMaskedLM"),
    "label": ("DistilBert", "ForSequenceClassification"),
    "span": ("DistilBert", "ForQuestionAnswering"),
    "embedding": ("DistilBert", "Model"),
    "language": ("GPTNeoX", "ForCausalLM"),
}


def saved(kind: str, ending: str, folder: Path, **fields: Any) -> Any:
    torch.manual_seed(3)
    config = getattr(transformers, f"{kind}Config")(vocab_size=VOCAB, **SMALL[kind], **fields)
    model = getattr(transformers, kind + ending)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model


def some_texts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCAB, (n,), generator=generator) for n in LENGTHS]


def packed(texts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    tokens, documents = torch.zeros(2, 28, dtype=torch.int64), torch.full((2, 28), -1)
    for row, column, text in ((0, 0, 2), (0, 17, 0), (1, 0, 4), (1, 12, 3), (1, 13, 1)):
        place = slice(column, column + LENGTHS[text])
        tokens[row, place], documents[row, place] = texts[text], text
    return {"tokens": tokens, "documents": documents}


@pytest.mark.parametrize("head", CLASSES)
def test_outputs_and_losses_are_those_of_transformers(head: Any, tmp_path: Path) -> None:
    theirs = saved(*CLASSES[head], tmp_path, **({"num_labels": 3} if head == "label" else {}))
    loaded = load_pretrained(tmp_path)
    ours, report = loaded.model, loaded.report
    assert isinstance(ours, AutoTransformer)
    assert ours.kind == head
    assert report == ([], [], [])
    texts = some_texts()
    batch = packed(texts)
    documents = batch["documents"]
    with torch.no_grad():
        alone = [theirs(text[None]) for text in texts]
        out = ours(**batch, num_documents=5)
    assert torch.isfinite(out).all()
    if head == "label":
        expected = torch.cat([a.logits for a in alone])
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
        targets = torch.tensor([0, 1, 2, IGNORE, 1])
        wanted = F.cross_entropy(expected, targets, reduction="sum")
    elif head == "embedding":
        expected = F.normalize(torch.cat([a.last_hidden_state.mean(1) for a in alone]), dim=1)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
        return
    elif head == "span":
        for number, a in enumerate(alone):
            both = torch.stack([a.start_logits[0], a.end_logits[0]], -1)
            torch.testing.assert_close(out[documents == number], both, atol=1e-5, rtol=1e-4)
        targets = torch.tensor([[19, 20], [41, 42], [0, 16], [40, 40], [IGNORE, IGNORE]])
        log = [torch.stack([a.start_logits[0], a.end_logits[0]], -1).log_softmax(0) for a in alone]
        wanted = -(log[0][2, 0] + log[0][3, 1] + log[1][0, 0] + log[1][1, 1] + log[2][0, 0] + log[2][16, 1])
    else:
        for number, a in enumerate(alone):
            torch.testing.assert_close(out[documents == number], a.logits[0], atol=1e-5, rtol=1e-4)
        targets = torch.where(documents >= 0, batch["tokens"], IGNORE)
        wanted = sum(F.cross_entropy(a.logits[0], t, reduction="sum") for a, t in zip(alone, texts, strict=True))  # type: ignore[assignment]
    torch.testing.assert_close(ours(**batch, num_documents=5, targets=targets), wanted, atol=1e-3, rtol=1e-5)
    each = ours(**batch, num_documents=5, targets=targets, reduction="none")
    torch.testing.assert_close(each.sum(), wanted, atol=1e-3, rtol=1e-5)


def test_a_language_models_batch_numbers_its_documents_in_each_row(tmp_path: Path) -> None:
    theirs = saved("GPTNeoX", "ForCausalLM", tmp_path)
    ours = load_pretrained(tmp_path).model
    tokens = torch.stack([some_texts()[2], some_texts()[2].flip(0)])
    documents = torch.tensor([[0] * 9 + [1] * 8, [0] * 17])
    with torch.no_grad():
        out = ours(tokens, documents=documents)
        parts = [theirs(t[None]).logits[0] for t in (tokens[0, :9], tokens[0, 9:], tokens[1])]
    torch.testing.assert_close(out.flatten(0, 1), torch.cat(parts), atol=1e-5, rtol=1e-4)


def test_from_one_text_to_another(tmp_path: Path) -> None:
    theirs = saved("Bart", "ForConditionalGeneration", tmp_path)
    ours = load_pretrained(tmp_path).model
    assert isinstance(ours, AutoTransformer)
    texts = some_texts()
    source, target = packed(texts), packed([t.flip(0) for t in texts])
    with torch.no_grad():
        out = ours(**target, source=source["tokens"], source_documents=source["documents"])
        for number, text in enumerate(texts):
            alone = theirs(input_ids=text[None], decoder_input_ids=text.flip(0)[None]).logits[0]
            torch.testing.assert_close(out[target["documents"] == number], alone, atol=1e-5, rtol=1e-4)


def test_built_again_from_its_config_and_weights_it_is_the_same(tmp_path: Path) -> None:
    saved("DistilBert", "ForMaskedLM", tmp_path)
    loaded = load_pretrained(tmp_path)
    config = type(loaded.config).model_validate(json.loads(loaded.config.model_dump_json()))
    weights = {name: parameter.detach().clone() for name, parameter in loaded.model.named_parameters()}
    assert weights.keys() == loaded.model.state_dict().keys(), "a tied weight has one name"
    with torch.device("meta"):
        again = build_model(config, VOCAB, "masked")
    again.load_state_dict(weights, assign=True)
    again.eval()
    text = some_texts()[2][None]
    with torch.no_grad():
        assert torch.equal(again(text), loaded.model(text))
    again.init_weights(1)  # type: ignore[operator]
    first = again(text)
    again.init_weights(1)  # type: ignore[operator]
    assert torch.equal(first, again(text))


def test_ours_is_taken_where_we_have_it_and_theirs_for_an_option_that_we_do_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 72, "vocab_size": VOCAB}
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(tmp_path / "bert")
    assert isinstance(load_pretrained(tmp_path / "bert").model, Model)
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, rope_parameters=rope)).eval()
    theirs.save_pretrained(tmp_path / "llama")
    ours = load_pretrained(tmp_path / "llama").model
    assert isinstance(ours, AutoTransformer)
    text = some_texts()[0][None]
    with torch.no_grad():
        torch.testing.assert_close(ours(text), theirs(text).logits, atol=1e-5, rtol=1e-4)


def test_new_heads_are_told_and_missing_weights_are_named(tmp_path: Path) -> None:
    saved("DistilBert", "ForMaskedLM", tmp_path)
    report = load_pretrained(tmp_path, "label", 5, seed=1).report
    assert sorted(report.initialised) == [
        "classifier.bias",
        "classifier.weight",
        "pre_classifier.bias",
        "pre_classifier.weight",
    ]
    assert any(name.startswith("vocab_") for name in report.unused)
    a, b = (load_pretrained(tmp_path, "label", 5, seed=1).model.state_dict() for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["distilbert.transformer.layer.1.ffn.lin1.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 missing: distilbert\.transformer\.layer\.1\.ffn\.lin1\.weight"):
        load_pretrained(tmp_path)
    assert load_pretrained(tmp_path, strict=False).report.missing == ["distilbert.transformer.layer.1.ffn.lin1.weight"]


def test_operations_are_those_of_the_counter(tmp_path: Path) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    saved("DistilBert", "ForMaskedLM", tmp_path)
    model, tokens = load_pretrained(tmp_path).model, torch.randint(0, VOCAB, (2, 48))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens, targets=tokens).backward()
    assert counter.get_total_flops() / tokens.numel() == pytest.approx(model.flops_per_token(48), rel=0.02)  # type: ignore[operator]


def test_what_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    saved("Bart", "ForConditionalGeneration", tmp_path / "bart")
    with pytest.raises(InputError, match="transformers has no distilbert with a language head"):
        saved("DistilBert", "ForMaskedLM", tmp_path / "distilbert")
        load_pretrained(tmp_path / "distilbert", "language")
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(InputError, match=r"'nonsense' cannot be loaded.*transformers does not know it either"):
        load_pretrained(tmp_path)
    (tmp_path / "bart" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="transformers cannot load it"):
        load_pretrained(tmp_path / "bart")


def test_names_that_are_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch(str(tmp_path)) == tmp_path
    with pytest.raises(InputError, match="no such folder, and as a repository was not downloaded before, and this is offline"):
        fetch("nobody/nothing", offline=True)
    with pytest.raises(InputError, match="no such folder, and no name of a repository"):
        fetch(str(tmp_path / "not" / "there"))
    with pytest.raises(InputError, match="nobody/nothing: no such folder, and as a repository the hub cannot be reached"):
        fetch("nobody/nothing", endpoint="http://127.0.0.1:9")
