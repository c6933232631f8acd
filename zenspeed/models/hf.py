"""Weights in from and out to folders of Hugging Face layout: GPT-2 and Llama, config.json beside safetensors.

Which of our parameters is made of which of theirs is a table (`_gpt2_table`, `_llama_table`), read in one direction to load
and in the other to save. Strict: a name that is missing, left over or of another shape is an error that lists it. Only
safetensors are read; a .bin file is a pickle, which runs code of its author when it is opened.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from zenspeed.config import InputError, read_text, validate, write_atomically
from zenspeed.models.presets import ModelConfig
from zenspeed.models.transformer import Transformer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class Source(NamedTuple):
    """Where one of our parameters is in their layout."""

    names: tuple[str, ...]
    """Their tensors, stacked along the first dimension of ours."""
    rows: tuple[int, ...] = ()
    """Rows of ours that each of several names holds."""
    transposed: bool = False
    """GPT-2's Conv1D keeps (in, out)."""


Table = dict[str, Source]


def from_huggingface(folder: Path | str) -> tuple[Transformer, ModelConfig]:
    """The model in `folder`, weights in fp32 on the CPU, in evaluation mode, and its config.

    Raises:
        InputError: no config.json or safetensors; another architecture or an option that we do not have; a file that is
            damaged; weights missing, left over or misshaped, all listed.
    """
    folder = Path(folder)
    theirs = _read_json(folder / "config.json")
    kind = theirs.get("model_type")
    if kind not in _FAMILIES:
        raise InputError(f"{folder / 'config.json'}: model_type {kind!r} cannot be loaded; known: {', '.join(_FAMILIES)}")
    family = _FAMILIES[kind]
    for key, wanted in family.required.items():
        if (value := theirs.get(key, wanted)) != wanted:
            raise InputError(f"{folder / 'config.json'}: {key} {value!r} is not supported for {kind}, only {wanted!r}")
    try:
        fields, vocab_size = family.read_config(theirs), int(theirs["vocab_size"])
    except KeyError as error:
        raise InputError(f"{folder / 'config.json'}: {error.args[0]} is not there; a {kind} config needs it") from None
    config = validate(ModelConfig, {"preset": kind, **fields}, name=str(folder / "config.json"))
    with torch.device("meta"):
        model = Transformer(config, vocab_size)
    model.to_empty(device="cpu")
    _fill(model, family, folder)
    return model.eval(), config


def to_huggingface(model: Transformer, folder: Path | str, end_of_text: int | None = None) -> None:
    """Writes `folder`/config.json and model.safetensors, which `transformers` opens as GPT-2 or Llama.

    `end_of_text` becomes the config's bos and eos token. Each file appears whole or not at all.

    Raises:
        InputError: the model is neither a GPT-2 nor a Llama; the keys that stand in the way are named.
    """
    folder, config = Path(folder), model.config
    obstacles = {name: _obstacles(config, family) for name, family in _FAMILIES.items()}
    kind = min(obstacles, key=lambda name: len(obstacles[name]))
    if obstacles[kind]:
        raise InputError(f"this model has no Hugging Face layout: as {kind} it would need {', '.join(obstacles[kind])}")
    family, parameters = _FAMILIES[kind], dict(model.named_parameters())
    tensors: dict[str, Tensor] = {}
    for name, source in family.table(config).items():
        parts = parameters[name].detach().cpu().split(source.rows or len(parameters[name]))
        for their_name, part in zip(source.names, parts, strict=True):
            tensors[their_name] = (part.t() if source.transposed else part).clone(memory_format=torch.contiguous_format)
    theirs = {
        "architectures": [family.architecture], "model_type": kind, "vocab_size": model.vocab_size,
        "bos_token_id": end_of_text, "eos_token_id": end_of_text, "tie_word_embeddings": config.tie_embeddings,
        "dtype": str(model.embedding.weight.dtype).removeprefix("torch."), **family.required, **family.write_config(config),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{WEIGHTS}"
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.replace(folder / WEIGHTS)
    write_atomically(folder / "config.json", json.dumps(theirs, indent=2) + "\n")


class Family(NamedTuple):
    """What we know of one architecture of theirs."""

    architecture: str
    prefix: str
    """Of all names but the head's; files of the bare model lack it."""
    buffers: tuple[str, ...]
    """Endings of names in old files that are no weights."""
    required: Mapping[str, Any]
    """Keys of config.json that may only have this value."""
    fixed: Mapping[str, tuple[Any, ...]]
    """Keys of our config and the values that fit."""
    table: Callable[[ModelConfig], Table]
    read_config: Callable[[dict[str, Any]], dict[str, Any]]
    write_config: Callable[[ModelConfig], dict[str, Any]]


def _gpt2_table(config: ModelConfig) -> Table:
    table = {"embedding.weight": Source(("transformer.wte.weight",)), "position.weight": Source(("transformer.wpe.weight",))}
    parts = {
        "attention_norm": "ln_1", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj",
        "feed_forward_norm": "ln_2", "feed_forward.up": "mlp.c_fc", "feed_forward.down": "mlp.c_proj",
    }  # fmt: skip
    for layer in range(config.layers):
        for ours, theirs in parts.items():
            weight = Source((f"transformer.h.{layer}.{theirs}.weight",), transposed="norm" not in ours)
            table[f"blocks.{layer}.{ours}.weight"] = weight
            table[f"blocks.{layer}.{ours}.bias"] = Source((f"transformer.h.{layer}.{theirs}.bias",))
    table["norm.weight"], table["norm.bias"] = Source(("transformer.ln_f.weight",)), Source(("transformer.ln_f.bias",))
    return table if config.tie_embeddings else table | {"head.weight": Source(("lm_head.weight",))}


def _llama_table(config: ModelConfig) -> Table:
    table = {"embedding.weight": Source(("model.embed_tokens.weight",)), "norm.weight": Source(("model.norm.weight",))}
    q, kv, inner = config.width, config.num_kv_heads * config.head_width, config.inner_width
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        qkv = tuple(f"{theirs}.self_attn.{x}_proj.weight" for x in "qkv")
        up = tuple(f"{theirs}.mlp.{x}_proj.weight" for x in ("gate", "up"))
        table |= {
            f"{ours}.attention_norm.weight": Source((f"{theirs}.input_layernorm.weight",)),
            f"{ours}.attention.qkv.weight": Source(qkv, (q, kv, kv)),
            f"{ours}.attention.out.weight": Source((f"{theirs}.self_attn.o_proj.weight",)),
            f"{ours}.feed_forward_norm.weight": Source((f"{theirs}.post_attention_layernorm.weight",)),
            f"{ours}.feed_forward.up.weight": Source(up, (inner, inner)),
            f"{ours}.feed_forward.down.weight": Source((f"{theirs}.mlp.down_proj.weight",)),
        }
    return table if config.tie_embeddings else table | {"head.weight": Source(("lm_head.weight",))}


_GPT2_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}


def _read_gpt2(theirs: dict[str, Any]) -> dict[str, Any]:
    activation = theirs.get("activation_function", "gelu_new")
    if activation not in _GPT2_ACTIVATIONS:
        raise InputError(f"config.json: activation_function {activation!r}: known are {', '.join(_GPT2_ACTIVATIONS)}")
    return {
        "layers": theirs["n_layer"], "width": theirs["n_embd"], "heads": theirs["n_head"], "context": theirs["n_positions"],
        "feed_forward": theirs.get("n_inner"), "norm_epsilon": theirs.get("layer_norm_epsilon", 1e-5),
        "activation": _GPT2_ACTIVATIONS[activation], "tie_embeddings": theirs.get("tie_word_embeddings", True),
    }  # fmt: skip


def _write_gpt2(config: ModelConfig) -> dict[str, Any]:
    activation = next(theirs for theirs, ours in _GPT2_ACTIVATIONS.items() if ours == config.activation)
    return {
        "n_layer": config.layers, "n_embd": config.width, "n_head": config.heads, "n_positions": config.context,
        "n_inner": config.inner_width, "layer_norm_epsilon": config.norm_epsilon, "activation_function": activation,
        "attn_pdrop": 0.0, "embd_pdrop": config.dropout, "resid_pdrop": config.dropout,
    }  # fmt: skip


def _read_llama(theirs: dict[str, Any]) -> dict[str, Any]:
    width, heads = theirs["hidden_size"], theirs["num_attention_heads"]
    if (head_width := theirs.get("head_dim") or width // heads) * heads != width:
        raise InputError(f"config.json: head_dim {head_width} × num_attention_heads {heads} is not hidden_size {width}")
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    if (scaling := rope.get("rope_type", rope.get("type", "default"))) != "default":
        raise InputError(f"config.json: rope_type {scaling!r} is not supported, only 'default'")
    return {
        "layers": theirs["num_hidden_layers"], "width": width, "heads": heads, "feed_forward": theirs["intermediate_size"],
        "kv_heads": theirs.get("num_key_value_heads"), "context": theirs["max_position_embeddings"],
        "norm_epsilon": theirs.get("rms_norm_eps", 1e-6), "tie_embeddings": theirs.get("tie_word_embeddings", False),
        "rotary_base": rope.get("rope_theta") or theirs.get("rope_theta", 10_000.0),
    }  # fmt: skip


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    return {
        "num_hidden_layers": config.layers, "hidden_size": config.width, "num_attention_heads": config.heads,
        "num_key_value_heads": config.num_kv_heads, "head_dim": config.head_width, "intermediate_size": config.inner_width,
        "max_position_embeddings": config.context, "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rotary_base,  # where transformers 4 looks, and below 5
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base},
    }  # fmt: skip


_FAMILIES = {
    "gpt2": Family(
        "GPT2LMHeadModel", "transformer.", (".attn.bias", ".attn.masked_bias"),
        {"add_cross_attention": False, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
        {"position": ("learned",), "norm": ("layernorm",), "activation": tuple(_GPT2_ACTIVATIONS.values()), "bias": (True,),
         "qk_norm": (False,), "logit_softcap": (None,)},
        _gpt2_table, _read_gpt2, _write_gpt2,
    ),
    "llama": Family(
        "LlamaForCausalLM", "model.", (".rotary_emb.inv_freq",),
        {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"},
        {"position": ("rotary",), "norm": ("rmsnorm",), "activation": ("swiglu",), "bias": (False,), "qk_norm": (False,),
         "logit_softcap": (None,)},
        _llama_table, _read_llama, _write_llama,
    ),
}  # fmt: skip


def _obstacles(config: ModelConfig, family: Family) -> list[str]:
    found = [
        f"{key} {' or '.join(map(str, dict.fromkeys(fitting)))} (is {getattr(config, key)})"
        for key, fitting in family.fixed.items()
        if getattr(config, key) not in fitting
    ]
    if family.architecture == "GPT2LMHeadModel" and config.num_kv_heads != config.heads:
        found.append(f"kv_heads {config.heads} (is {config.num_kv_heads})")
    return found


@torch.no_grad()
def _fill(model: Transformer, family: Family, folder: Path) -> None:
    """Copies every weight of the folder to its place in `model`; an `InputError` lists all that do not fit."""
    table = family.table(model.config)
    places: dict[str, tuple[Tensor, bool]] = {}  # their name -> the part of ours that it fills
    for name, parameter in model.named_parameters():
        source = table[name]
        for their_name, part in zip(source.names, parameter.split(source.rows or len(parameter)), strict=True):
            places[their_name] = (part, source.transposed)
    missing, unused, misshaped = set(places), [], []
    for their_name, tensor in _read_weights(folder):
        name = their_name if their_name.startswith((family.prefix, "lm_head.")) else family.prefix + their_name
        if name.endswith(family.buffers) or (name == "lm_head.weight" and model.head is None):
            continue
        if name not in places:
            unused.append(f"{their_name} {tuple(tensor.shape)}")
            continue
        missing.discard(name)
        part, transposed = places[name]
        if (tensor := tensor.t() if transposed and tensor.ndim == 2 else tensor).shape != part.shape:
            shape = part.shape[::-1] if transposed else part.shape
            got = tensor.shape[::-1] if transposed else tensor.shape
            misshaped.append(f"{their_name} is {tuple(got)}, the config says {tuple(shape)}")
        else:
            part.copy_(tensor)
    faults = {"missing": sorted(missing), "left over": unused, "misshaped": misshaped}
    if any(faults.values()):
        listed = "; ".join(f"{len(names)} {fault}: {_list(names)}" for fault, names in faults.items() if names)
        raise InputError(f"{folder}: the weights do not fit config.json: {listed}")


def _list(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of every weight in the safetensors file of `folder`, or in those that its index names."""
    if (folder / INDEX).exists():
        names = sorted({str(name) for name in _read_json(folder / INDEX).get("weight_map", {}).values()})
        if outside := [name for name in names if Path(name).name != name]:
            raise InputError(f"{folder / INDEX}: {outside[0]!r} is not a file of this folder")
    elif (folder / WEIGHTS).exists():
        names = [WEIGHTS]
    else:
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        why = f"; {pickles[0]} is a pickle, which may run code: convert it with save_pretrained" if pickles else ""
        raise InputError(f"{folder}: no {WEIGHTS}{why}")
    for name in names:
        try:
            with safe_open(folder / name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 – it is no dict
                    yield key, file.get_tensor(key)
        except FileNotFoundError:
            raise InputError(f"{folder / name}: no such file, but {INDEX} names it") from None
        except (SafetensorError, OSError) as error:
            raise InputError(f"{folder / name}: damaged or not a safetensors file: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a JSON object, this is a {type(data).__name__}")
    return data
