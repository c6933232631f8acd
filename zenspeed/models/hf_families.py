"""What we know of the architectures of Hugging Face: names of weights and keys of config.json, as tables.

A table says which of our parameters is made of which of theirs; hf.py reads it in one direction to load and in the other to
save. The names on our side are those of a body (transformer.py) and of a head (heads.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from zenspeed.config import InputError
from zenspeed.models.heads import Head
from zenspeed.models.presets import ModelConfig


class Source(NamedTuple):
    """Where one of our parameters is in their layout."""

    names: tuple[str, ...]
    """Their tensors, stacked along the first dimension of ours."""
    rows: tuple[int, ...] = ()
    """Rows of ours that each of several names holds."""
    transposed: bool = False
    """GPT-2's Conv1D keeps (in, out)."""
    skip: int = 0
    """Rows at the beginning of theirs that we do not have: RoBERTa counts positions from the padding token's number on."""


Table = dict[str, Source]


class Family(NamedTuple):
    """One architecture of theirs."""

    architectures: Mapping[Head, str]
    """Their class for each head."""
    prefix: str
    """Of all names but the heads'; files of the bare model lack it."""
    buffers: tuple[str, ...]
    """Endings of names that are no weights, or copies of tied ones."""
    required: Mapping[str, Any]
    """Keys of config.json that may only have this value."""
    fixed: Mapping[str, tuple[Any, ...]]
    """Keys of our config and the values that fit."""
    table: Callable[[ModelConfig, int], Table]
    """Of the body; the number is `offset`'s."""
    head_table: Callable[[ModelConfig, Head], Table]
    read_config: Callable[[dict[str, Any]], dict[str, Any]]
    write_config: Callable[[ModelConfig], dict[str, Any]]
    offset: Callable[[Mapping[str, Any]], int] = lambda theirs: 0
    """Positions of theirs, given their config.json, that are never used."""
    grouped: bool = False
    """Has grouped-query attention."""
    fixed_label: Mapping[str, tuple[Any, ...]] = {}
    """As `fixed`, under a label head."""


HEAD_PREFIXES = ("lm_head.", "score.", "cls.", "classifier.", "qa_outputs.")
"""Names of theirs that belong to a head; a body has none of them."""


def obstacles(config: ModelConfig, family: Family, head: Head) -> list[str]:
    """What keeps a config from this family: keys with the values it would need."""
    found = [
        f"{key} {' or '.join(map(str, dict.fromkeys(fitting)))} (is {getattr(config, key)})"
        for key, fitting in {**_PLAIN, **family.fixed, **(family.fixed_label if head == "label" else {})}.items()
        if getattr(config, key) not in fitting
    ]
    if head not in family.architectures:
        found.append(f"another head than {head}")
    if family.grouped is False and config.num_kv_heads != config.heads:
        found.append(f"kv_heads {config.heads} (is {config.num_kv_heads})")
    return found


def _gpt2_table(config: ModelConfig, offset: int) -> Table:
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
    return table


def _llama_table(config: ModelConfig, offset: int) -> Table:
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
    return table


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


def _decoder_head(config: ModelConfig, head: Head) -> Table:
    if head == "label":
        return {"head.score.weight": Source(("score.weight",))}
    return {} if config.tie_embeddings else {"head.weight": Source(("lm_head.weight",))}


def _bert_table(config: ModelConfig, offset: int) -> Table:
    table = _both("embedding_norm", "embeddings.LayerNorm")
    table["embedding.weight"] = Source(("embeddings.word_embeddings.weight",))
    table["position.weight"] = Source(("embeddings.position_embeddings.weight",), skip=offset)
    table["token_types.weight"] = Source(("embeddings.token_type_embeddings.weight",))
    parts = {
        "attention.out": "attention.output.dense", "attention_norm": "attention.output.LayerNorm",
        "feed_forward.up": "intermediate.dense", "feed_forward.down": "output.dense", "feed_forward_norm": "output.LayerNorm",
    }  # fmt: skip
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}", f"encoder.layer.{layer}"
        for part, name in parts.items():
            table |= _both(f"{ours}.{part}", f"{theirs}.{name}")
        for kind in ("weight", "bias"):
            names = tuple(f"{theirs}.attention.self.{x}.{kind}" for x in ("query", "key", "value"))
            table[f"{ours}.attention.qkv.{kind}"] = Source(names, (config.width,) * 3)
    return table


def _prefixed(prefix: str, table: Table) -> Table:
    return {ours: s._replace(names=tuple(prefix + name for name in s.names)) for ours, s in table.items()}


def _both(ours: str, theirs: str) -> Table:
    return {f"{ours}.{kind}": Source((f"{theirs}.{kind}",)) for kind in ("weight", "bias")}


def _bert_head(config: ModelConfig, head: Head) -> Table:
    if head == "masked":
        table = _both("head.dense", "cls.predictions.transform.dense")
        table |= _both("head.norm", "cls.predictions.transform.LayerNorm")
        return table | _masked_output(config, "cls.predictions")
    if head == "label":
        return _both("head.pooler", "bert.pooler.dense") | _both("head.score", "classifier")
    return _both("head.score", "qa_outputs") if head == "span" else {}


def _masked_output(config: ModelConfig, theirs: str) -> Table:
    if config.tie_embeddings:
        return {"head.bias": Source((f"{theirs}.bias",))}
    return {"head.bias": Source((f"{theirs}.decoder.bias",)), "head.head.weight": Source((f"{theirs}.decoder.weight",))}


def _roberta_head(config: ModelConfig, head: Head) -> Table:
    if head == "masked":
        table = _both("head.dense", "lm_head.dense") | _both("head.norm", "lm_head.layer_norm")
        return table | _masked_output(config, "lm_head")
    if head == "label":
        return _both("head.pooler", "classifier.dense") | _both("head.score", "classifier.out_proj")
    return _both("head.score", "qa_outputs") if head == "span" else {}


_BERT_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


def _read_bert(theirs: dict[str, Any]) -> dict[str, Any]:
    activation = theirs.get("hidden_act", "gelu")
    if activation not in _BERT_ACTIVATIONS:
        raise InputError(f"config.json: hidden_act {activation!r}: known are {', '.join(_BERT_ACTIVATIONS)}")
    return {
        "layers": theirs["num_hidden_layers"], "width": theirs["hidden_size"], "heads": theirs["num_attention_heads"],
        "feed_forward": theirs["intermediate_size"], "context": theirs["max_position_embeddings"],
        "norm_epsilon": theirs.get("layer_norm_eps", 1e-12), "activation": _BERT_ACTIVATIONS[activation],
        "token_types": theirs.get("type_vocab_size", 2), "tie_embeddings": theirs.get("tie_word_embeddings", True),
        "dropout": theirs.get("hidden_dropout_prob", 0.1),
    }  # fmt: skip


def _read_roberta(theirs: dict[str, Any]) -> dict[str, Any]:
    fields = _read_bert(theirs)
    return {**fields, "context": fields["context"] - _roberta_offset(theirs)}


def _roberta_offset(theirs: Mapping[str, Any]) -> int:
    pad = theirs.get("pad_token_id", 1)
    return 1 + (1 if pad is None else pad)


def _write_bert(config: ModelConfig) -> dict[str, Any]:
    activation = next(theirs for theirs, ours in _BERT_ACTIVATIONS.items() if ours == config.activation)
    return {
        "num_hidden_layers": config.layers, "hidden_size": config.width, "num_attention_heads": config.heads,
        "intermediate_size": config.inner_width, "max_position_embeddings": config.context,
        "layer_norm_eps": config.norm_epsilon, "hidden_act": activation, "type_vocab_size": config.token_types,
        "hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": 0.0, "pad_token_id": 0,
    }  # fmt: skip


def _write_roberta(config: ModelConfig) -> dict[str, Any]:
    pad = {"pad_token_id": 1}
    return {**_write_bert(config), **pad, "max_position_embeddings": config.context + _roberta_offset(pad)}


_PLAIN: dict[str, tuple[Any, ...]] = {
    "architecture": ("decoder",), "norm_placement": ("pre",), "embedding_norm": (False,), "token_types": (0,),
    "qk_norm": (False,), "logit_softcap": (None,), "ngrams": ((),),
}  # fmt: skip
"""Values that fit where a family says nothing else."""
_BERT_FIXED: dict[str, tuple[Any, ...]] = {
    "architecture": ("encoder",), "position": ("learned",), "norm": ("layernorm",), "norm_placement": ("post",),
    "embedding_norm": (True,), "bias": (True,),
}  # fmt: skip
_LAST: dict[str, tuple[Any, ...]] = {"pool": ("last",), "pooler": (False,)}
_BERT_LABEL: dict[str, tuple[Any, ...]] = {"pool": ("first",), "pooler": (True,)}
_ENCODER_REQUIRED = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"}

FAMILIES = {
    "gpt2": Family(
        {"language": "GPT2LMHeadModel", "label": "GPT2ForSequenceClassification"},
        "transformer.", (".attn.bias", ".attn.masked_bias"),
        {"add_cross_attention": False, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
        {"position": ("learned",), "norm": ("layernorm",), "activation": tuple(_GPT2_ACTIVATIONS.values()), "bias": (True,)},
        _gpt2_table, _decoder_head, _read_gpt2, _write_gpt2, fixed_label=_LAST,
    ),
    "llama": Family(
        {"language": "LlamaForCausalLM", "label": "LlamaForSequenceClassification"},
        "model.", (".rotary_emb.inv_freq",),
        {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"},
        {"position": ("rotary",), "norm": ("rmsnorm",), "activation": ("swiglu",), "bias": (False,)},
        _llama_table, _decoder_head, _read_llama, _write_llama, grouped=True, fixed_label=_LAST,
    ),
    "bert": Family(
        {"masked": "BertForMaskedLM", "label": "BertForSequenceClassification", "span": "BertForQuestionAnswering",
         "embedding": "BertModel"},
        "bert.", (".position_ids", ".predictions.decoder.bias"),
        _ENCODER_REQUIRED,
        {**_BERT_FIXED, "token_types": tuple(range(1, 100)), "activation": tuple(_BERT_ACTIVATIONS.values())},
        lambda config, offset: _prefixed("bert.", _bert_table(config, offset)), _bert_head, _read_bert, _write_bert,
        fixed_label=_BERT_LABEL,
    ),
    "roberta": Family(
        {"masked": "RobertaForMaskedLM", "label": "RobertaForSequenceClassification", "span": "RobertaForQuestionAnswering",
         "embedding": "RobertaModel"},
        "roberta.", (".position_ids", "lm_head.decoder.bias"),
        {**_ENCODER_REQUIRED, "hidden_act": "gelu"},
        {**_BERT_FIXED, "token_types": tuple(range(1, 100)), "activation": ("gelu",)},
        lambda config, offset: _prefixed("roberta.", _bert_table(config, offset)), _roberta_head, _read_roberta, _write_roberta,
        _roberta_offset, fixed_label=_BERT_LABEL,
    ),
}  # fmt: skip
