"""Our Transformer against Hugging Face's, and its fast paths against its plain ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from zenspeed.config import InputError
from zenspeed.generate import generate
from zenspeed.models.hf import from_huggingface, to_huggingface
from zenspeed.models.presets import ModelConfig
from zenspeed.models.transformer import Transformer

transformers = pytest.importorskip("transformers")
VOCAB = 97
PRESETS = ("gpt", "gpt2", "llama")
HF_MODELS = {
    "gpt2": {},
    "gpt2-untied-relu": {"tie_word_embeddings": False, "activation_function": "relu", "n_inner": 80},
    "llama": {},
    "llama-gqa": {"num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "llama-tied": {"num_key_value_heads": 1, "tie_word_embeddings": True, "rms_norm_eps": 1e-3},
}


def hf_model(name: str) -> Any:
    torch.manual_seed(3)
    ends = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": VOCAB, "initializer_range": 0.3}
    if name.startswith("gpt2"):
        sizes = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 48}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ends, **HF_MODELS[name])).eval()
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 72}
    config = transformers.LlamaConfig(**sizes, max_position_embeddings=48, **ends, **HF_MODELS[name])
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():  # norms start at 1 and biases at 0, which would hide a mix-up
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def scrambled(preset: str, **fields: Any) -> Transformer:
    """A small model whose every weight is random, norms and zero-initialised projections included."""
    sizes: dict[str, Any] = {"layers": 2, "width": 32, "heads": 4, "context": 24} | fields
    model = Transformer(ModelConfig(preset=preset, **sizes), VOCAB)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + ("norm" in name))
    return model.eval()


def some_tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", HF_MODELS)
def test_logits_and_greedy_tokens_equal_hugging_face_both_ways(name: str, tmp_path: Path) -> None:
    theirs = hf_model(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, _ = from_huggingface(tmp_path / "theirs")
    to_huggingface(ours, tmp_path / "ours", end_of_text=0)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    tokens = some_tokens(3, 40)
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert expected.std() > 0.5, "logits that hardly vary would agree whatever we do"
        assert (ours(tokens) - expected).abs().max() <= 1e-4
        assert (again(tokens).logits - expected).abs().max() <= 1e-4
    prompt = tokens[:1, :8]
    greedy = theirs.generate(prompt, max_new_tokens=30, do_sample=False, eos_token_id=None, pad_token_id=0)[0, 8:].tolist()
    assert list(generate(ours, prompt[0].tolist(), max_tokens=30, temperature=0)) == greedy


def test_saved_weights_are_those_that_were_read(tmp_path: Path) -> None:
    hf_model("llama-gqa").save_pretrained(tmp_path / "theirs")
    ours, config = from_huggingface(tmp_path / "theirs")
    to_huggingface(ours, tmp_path / "ours")
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert from_huggingface(tmp_path / "ours")[1] == config
    assert sorted(p.name for p in (tmp_path / "ours").iterdir()) == ["config.json", "model.safetensors"]


def test_weights_in_several_files_and_without_prefix(tmp_path: Path) -> None:
    theirs = hf_model("gpt2")
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    theirs.transformer.save_pretrained(tmp_path / "bare")  # as openai-community/gpt2 is
    tokens = some_tokens(1, 9)
    for folder in ("sharded", "bare"):
        with torch.no_grad():
            assert (from_huggingface(tmp_path / folder)[0](tokens) - theirs(tokens).logits).abs().max() <= 1e-4


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    hf_model("gpt2").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["transformer.h.1.ln_2.bias"]
    tensors["transformer.h.0.mlp.c_fc.weight"] = torch.zeros(32, 100)
    tensors["transformer.h.0.extra"] = torch.zeros(3)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError) as error:
        from_huggingface(tmp_path)
    message = str(error.value)
    assert "1 missing: transformer.h.1.ln_2.bias" in message
    assert "1 left over: transformer.h.0.extra (3,)" in message
    assert "1 misshaped: transformer.h.0.mlp.c_fc.weight is (32, 100), the config says (32, 128)" in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model_type": "bloom"}, "model_type 'bloom' cannot be loaded; known: gpt2, llama"),
        ({"attention_bias": True}, "attention_bias True is not supported"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn' is not supported"),
        ({"head_dim": 16}, "head_dim 16 × num_attention_heads 4 is not hidden_size 32"),
        ({"num_key_value_heads": 3}, "heads 4 is not divisible by kv_heads 3"),
        ({"vocab_size": None}, "vocab_size is not there"),
    ],
)
def test_configs_that_we_cannot_run_are_refused(change: dict[str, Any], expected: str, tmp_path: Path) -> None:
    hf_model("llama").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = {k: v for k, v in {**json.loads(path.read_text()), **change}.items() if v is not None}
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=expected):
        from_huggingface(tmp_path)


def test_damaged_missing_and_pickled_weights_are_refused(tmp_path: Path) -> None:
    hf_model("llama").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors: damaged"):
        from_huggingface(tmp_path)
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle.*convert"):
        from_huggingface(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    with pytest.raises(InputError, match="not a file of this folder"):
        from_huggingface(tmp_path)


def test_a_model_without_hugging_face_layout_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="qk_norm False"):
        to_huggingface(scrambled("gpt"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("preset", PRESETS)
def test_loss_of_a_document_in_a_pack_is_its_loss_alone(preset: str) -> None:
    model, tokens = scrambled(preset, kv_heads=2), some_tokens(2, 24)
    targets = tokens.roll(-1, 1)
    lengths = [(5, 1, 18), (11, 13)]
    documents = torch.stack([torch.arange(len(n)).repeat_interleave(torch.tensor(n)) for n in lengths])
    packed = model(tokens, documents=documents, targets=targets, reduction="none")
    for row, row_lengths in enumerate(lengths):
        pieces = zip(tokens[row].split(row_lengths), targets[row].split(row_lengths), strict=True)
        alone = torch.cat([model(t[None], targets=u[None], reduction="none")[0] for t, u in pieces])
        torch.testing.assert_close(packed[row], alone, atol=2e-5, rtol=1e-5)
    unmasked = model(tokens, targets=targets, reduction="none")
    assert (packed - unmasked).abs().max() > 0.1, "the documents must have mattered"


@pytest.mark.parametrize("preset", PRESETS)
def test_cached_equals_uncached_and_batched_equals_single(preset: str) -> None:
    model, tokens = scrambled(preset, kv_heads=1 if preset == "gpt" else 2), some_tokens(3, 24)
    with torch.no_grad():
        full = model(tokens)
        cache = model.new_cache(3, 24)
        steps = [model(tokens[:, a:b], cache=cache) for a, b in ((0, 7), (7, 8), (8, 12), *((t, t + 1) for t in range(12, 24)))]
        single = torch.cat([model(row[None]) for row in tokens])
    torch.testing.assert_close(torch.cat(steps, dim=1), full, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(single, full, atol=2e-5, rtol=1e-4)
    assert cache.num_tokens == 24


def test_the_cache_keeps_its_memory_and_slides() -> None:
    """Beyond the cache a token sees the last `max_tokens`. With one layer that is the forward of just these tokens."""
    model, tokens = scrambled("llama", layers=1), some_tokens(1, 60)[0]
    cache = model.new_cache(1, 24)
    pointers = [t.data_ptr() for t in cache.keys + cache.values]
    with torch.no_grad():
        model(tokens[None, :20], cache=cache)
        for end in range(21, 61):
            step = model(tokens[None, end - 1 : end], cache=cache)[0, -1]
            window = model(tokens[None, max(0, end - 24) : end])[0, -1]
            torch.testing.assert_close(step, window, atol=5e-5, rtol=1e-4)
    assert pointers == [t.data_ptr() for t in cache.keys + cache.values]


@pytest.mark.parametrize("preset", PRESETS)
def test_loss_is_the_cross_entropy_of_the_logits(preset: str) -> None:
    model, tokens = scrambled(preset, logit_softcap=5.0 if preset == "gpt" else None), some_tokens(2, 24)
    targets = tokens.roll(-1, 1)
    targets[0, :9] = -100
    expected = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="sum")
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    loss = model(tokens, targets=targets)
    got = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(loss, expected)
    for (name, _), a, b in zip(model.named_parameters(), got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4, msg=name)
    each = model(tokens, targets=targets, reduction="none")
    assert each.shape == targets.shape
    assert (each[0, :9] == 0).all()
    torch.testing.assert_close(each.sum(), expected)


@pytest.mark.parametrize("preset", PRESETS)
def test_bf16_autocast_and_bf16_weights_are_close_to_fp32(preset: str) -> None:
    torch.manual_seed(2)
    model = Transformer(ModelConfig(preset=preset, layers=2, width=64, heads=4, context=32, init="gpt2"), VOCAB)  # type: ignore[arg-type]
    tokens, documents = some_tokens(2, 32), torch.tensor([[0] * 20 + [1] * 12, [0] * 32])
    exact = model(tokens, documents=documents, targets=tokens)
    exact.backward()
    gradient = model.blocks[0].attention.qkv.weight.grad.clone()  # type: ignore[union-attr, operator]
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(tokens, documents=documents, targets=tokens)
    assert mixed.dtype == torch.float32
    mixed.backward()
    half_gradient = model.blocks[0].attention.qkv.weight.grad  # type: ignore[union-attr]
    assert half_gradient.dtype == torch.float32  # type: ignore[union-attr]
    assert torch.cosine_similarity(gradient.flatten(), half_gradient.flatten(), dim=0) > 0.995  # type: ignore[union-attr, arg-type]
    half = model.bfloat16()(tokens, documents=documents, targets=tokens)
    for loss in (mixed, half):
        assert abs(loss.item() / exact.item() - 1) < 3e-3


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("tied", [True, False])
def test_initialisation_is_a_function_of_the_seed_alone(preset: str, tied: bool) -> None:
    config = ModelConfig(preset=preset, layers=2, width=64, heads=4, tie_embeddings=tied)  # type: ignore[arg-type]
    torch.manual_seed(11)
    first = Transformer(config, VOCAB).state_dict()
    with torch.device("meta"):
        empty = Transformer(config, VOCAB)
    assert all(p.is_meta for p in empty.parameters())
    second = empty.to_empty(device="cpu")
    second.init_weights(11)
    assert first.keys() == second.state_dict().keys()
    assert all(torch.equal(first[name], weight) for name, weight in second.state_dict().items())
    tokens = some_tokens(4, 32)
    loss = second(tokens, targets=tokens).item() / tokens.numel()
    assert math.isfinite(loss)
    if config.init == "zero_out" and not tied:
        assert loss == pytest.approx(math.log(VOCAB), rel=1e-4)
        assert second.blocks[0].attention.qkv.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)  # type: ignore[union-attr, operator]
    if config.init == "gpt2":
        assert second.blocks[0].attention.out.weight.std().item() == pytest.approx(0.02 / 2, rel=0.05)  # type: ignore[union-attr, operator]


def test_dropout_acts_in_training_only() -> None:
    model, tokens = scrambled("gpt", dropout=0.5), some_tokens(1, 8)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_compiled_blocks_give_the_same_losses() -> None:
    model, tokens = scrambled("gpt"), some_tokens(2, 24)
    plain = model(tokens, targets=tokens)
    for block in model.blocks:
        block.compile()
    compiled = model(tokens, targets=tokens)
    compiled.backward()
    torch.testing.assert_close(plain, compiled)
