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
    fixed: Mapping[str, tuple[Any, ...] | None]
    """Keys of our config and the values that fit, None: any."""
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
    preset: str = ""
    """Ours; if empty, that of the same name."""
    tied_by_file: bool = False
    """Whether the head is tied is seen by its weight not being there."""


HEAD_PREFIXES = ("lm_head.", "score.", "cls.", "classifier.", "qa_outputs.")
"""Names of theirs that belong to a head; a body has none of them."""


def obstacles(config: ModelConfig, family: Family, head: Head) -> list[str]:
    """What keeps a config from this family: keys with the values it would need."""
    found = [
        f"{key} {' or '.join(map(str, dict.fromkeys(fitting)))} (is {getattr(config, key)})"
        for key, fitting in {**_PLAIN, **family.fixed, **(family.fixed_label if head == "label" else {})}.items()
        if fitting is not None and getattr(config, key) not in fitting
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
    q, kv, inner = config.heads * config.head_width, config.num_kv_heads * config.head_width, config.inner_width
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
        if config.qkv_bias:
            biases = tuple(f"{theirs}.self_attn.{x}_proj.bias" for x in "qkv")
            table[f"{ours}.attention.qkv.bias"] = Source(biases, (q, kv, kv))
        if config.qk_norm_weights:
            table |= {f"{ours}.attention.{x}_norm": Source((f"{theirs}.self_attn.{x}_norm.weight",)) for x in "qk"}
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


def _read_mistral(theirs: dict[str, Any]) -> dict[str, Any]:
    return {**_read_llama({**theirs, "head_dim": None}), **_head_size(theirs), "window": theirs.get("sliding_window")}


def _read_qwen2(theirs: dict[str, Any]) -> dict[str, Any]:
    return {**_read_llama(theirs), "qkv_bias": True, "qk_norm": False, "qk_norm_weights": False}


def _read_qwen3(theirs: dict[str, Any]) -> dict[str, Any]:
    return {**_read_llama({**theirs, "head_dim": None}), **_head_size(theirs)}


def _head_size(theirs: dict[str, Any]) -> dict[str, Any]:
    usual = theirs["hidden_size"] / theirs["num_attention_heads"]
    size = theirs.get("head_dim") or usual
    return {"head_size": None if size == usual else size}


def _write_mistral(config: ModelConfig) -> dict[str, Any]:
    return {**_write_llama(config), "sliding_window": config.window}


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


def _t5_table(config: ModelConfig, offset: int) -> Table:
    table = {"embedding.weight": Source(("shared.weight",))}
    inner, attention = config.heads * config.head_width, ("q", "k", "v")
    for stack, layers in (("encoder", config.layers), ("decoder", config.decoder_layers or config.layers)):
        last = 2 if stack == "decoder" else 1
        relative = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table[f"{stack}.relative.weight"] = Source((relative,))
        table[f"{stack}.norm.weight"] = Source((f"{stack}.final_layer_norm.weight",))
        for layer in range(layers):
            ours, theirs = f"{stack}.blocks.{layer}", f"{stack}.block.{layer}.layer"
            qkv = tuple(f"{theirs}.0.SelfAttention.{x}.weight" for x in attention)
            wi = ("wi_0", "wi_1") if config.gated else ("wi",)
            up = tuple(f"{theirs}.{last}.DenseReluDense.{x}.weight" for x in wi)
            table |= {
                f"{ours}.attention_norm.weight": Source((f"{theirs}.0.layer_norm.weight",)),
                f"{ours}.attention.qkv.weight": Source(qkv, (inner,) * 3),
                f"{ours}.attention.out.weight": Source((f"{theirs}.0.SelfAttention.o.weight",)),
                f"{ours}.feed_forward_norm.weight": Source((f"{theirs}.{last}.layer_norm.weight",)),
                f"{ours}.feed_forward.up.weight": Source(up, (config.inner_width,) * len(up)),
                f"{ours}.feed_forward.down.weight": Source((f"{theirs}.{last}.DenseReluDense.wo.weight",)),
            }
            if stack == "decoder":
                kv = tuple(f"{theirs}.1.EncDecAttention.{x}.weight" for x in attention[1:])
                table |= {
                    f"{ours}.cross_norm.weight": Source((f"{theirs}.1.layer_norm.weight",)),
                    f"{ours}.cross.q.weight": Source((f"{theirs}.1.EncDecAttention.q.weight",)),
                    f"{ours}.cross.kv.weight": Source(kv, (inner,) * 2),
                    f"{ours}.cross.out.weight": Source((f"{theirs}.1.EncDecAttention.o.weight",)),
                }
    return table


_T5_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gated-gelu": "geglu", "gated-silu": "swiglu"}


def _read_t5(theirs: dict[str, Any]) -> dict[str, Any]:
    activation = theirs.get("feed_forward_proj", "relu")
    if activation not in _T5_ACTIVATIONS:
        raise InputError(f"config.json: feed_forward_proj {activation!r}: known are {', '.join(_T5_ACTIVATIONS)}")
    tied = theirs.get("tie_word_embeddings", True)
    scaled = theirs.get("scale_decoder_outputs", tied)
    return {
        "layers": theirs["num_layers"], "decoder_layers": theirs.get("num_decoder_layers"), "width": theirs["d_model"],
        "heads": theirs["num_heads"], "head_size": theirs["d_kv"], "feed_forward": theirs["d_ff"],
        "context": theirs.get("n_positions", 512), "norm_epsilon": theirs.get("layer_norm_epsilon", 1e-6),
        "relative_buckets": theirs.get("relative_attention_num_buckets", 32),
        "relative_distance": theirs.get("relative_attention_max_distance", 128),
        "activation": _T5_ACTIVATIONS[activation], "dropout": theirs.get("dropout_rate", 0.1),
        "tie_embeddings": tied and scaled, "scale_logits": scaled,
    }  # fmt: skip


def _write_t5(config: ModelConfig) -> dict[str, Any]:
    activation = next(theirs for theirs, ours in _T5_ACTIVATIONS.items() if ours == config.activation)
    return {
        "num_layers": config.layers, "num_decoder_layers": config.decoder_layers or config.layers, "d_model": config.width,
        "num_heads": config.heads, "d_kv": config.head_width, "d_ff": config.inner_width, "n_positions": config.context,
        "layer_norm_epsilon": config.norm_epsilon, "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_distance, "feed_forward_proj": activation,
        "dropout_rate": config.dropout, "pad_token_id": 0, "decoder_start_token_id": 0, "is_encoder_decoder": True,
        "scale_decoder_outputs": config.scale_logits,
    }  # fmt: skip


_PLAIN: dict[str, tuple[Any, ...] | None] = {
    "architecture": ("decoder",), "norm_placement": ("pre",), "embedding_norm": (False,), "token_types": (0,),
    "qk_norm": (False,), "qk_norm_weights": (False,), "logit_softcap": (None,), "ngrams": ((),), "head_size": (None,),
    "window": (None,), "experts": (0,), "qkv_bias": (None, False), "scale_attention": (True,), "scale_embeddings": (False,),
    "scale_logits": (False,), "base_width": (None,),
}  # fmt: skip
"""Values that fit where a family says nothing else."""
_BERT_FIXED: dict[str, tuple[Any, ...] | None] = {
    "architecture": ("encoder",), "position": ("learned",), "norm": ("layernorm",), "norm_placement": ("post",),
    "embedding_norm": (True,), "bias": (True,), "qkv_bias": (None, True),
}  # fmt: skip
_LLAMA_FIXED: dict[str, tuple[Any, ...] | None] = {
    "position": ("rotary",), "norm": ("rmsnorm",), "activation": ("swiglu",), "bias": (False,)
}  # fmt: skip
_LAST: dict[str, tuple[Any, ...]] = {"pool": ("last",), "pooler": (False,)}
_BERT_LABEL: dict[str, tuple[Any, ...]] = {"pool": ("first",), "pooler": (True,)}
_ENCODER_REQUIRED = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"}

FAMILIES = {
    "gpt2": Family(
        {"language": "GPT2LMHeadModel", "label": "GPT2ForSequenceClassification"},
        "transformer.", (".attn.bias", ".attn.masked_bias"),
        {"add_cross_attention": False, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
        {"position": ("learned",), "norm": ("layernorm",), "activation": tuple(_GPT2_ACTIVATIONS.values()), "bias": (True,),
         "qkv_bias": (None, True)},
        _gpt2_table, _decoder_head, _read_gpt2, _write_gpt2, fixed_label=_LAST,
    ),
    "llama": Family(
        {"language": "LlamaForCausalLM", "label": "LlamaForSequenceClassification"},
        "model.", (".rotary_emb.inv_freq",),
        {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"},
        _LLAMA_FIXED,
        _llama_table, _decoder_head, _read_llama, _write_llama, grouped=True, fixed_label=_LAST,
    ),
    "mistral": Family(
        {"language": "MistralForCausalLM", "label": "MistralForSequenceClassification"},
        "model.", (".rotary_emb.inv_freq",),
        {"hidden_act": "silu"},
        {**_LLAMA_FIXED, "window": None, "head_size": None},
        _llama_table, _decoder_head, _read_mistral, _write_mistral, grouped=True, fixed_label=_LAST, preset="llama",
    ),
    "qwen2": Family(
        {"language": "Qwen2ForCausalLM", "label": "Qwen2ForSequenceClassification"},
        "model.", (".rotary_emb.inv_freq",),
        {"use_sliding_window": False, "hidden_act": "silu"},
        {**_LLAMA_FIXED, "qkv_bias": (True,)},
        _llama_table, _decoder_head, _read_qwen2, _write_llama, grouped=True, fixed_label=_LAST, preset="qwen",
    ),
    "qwen3": Family(
        {"language": "Qwen3ForCausalLM", "label": "Qwen3ForSequenceClassification"},
        "model.", (".rotary_emb.inv_freq",),
        {"use_sliding_window": False, "hidden_act": "silu", "attention_bias": False},
        {**_LLAMA_FIXED, "qk_norm": (True,), "qk_norm_weights": (True,), "head_size": None},
        _llama_table, _decoder_head, _read_qwen3, _write_llama, grouped=True, fixed_label=_LAST, preset="qwen",
    ),
    "t5": Family(
        {"language": "T5ForConditionalGeneration"},
        "", (".embed_tokens.weight", "EncDecAttention.relative_attention_bias.weight"),
        {},
        {"architecture": ("encoder_decoder",), "position": ("relative",), "norm": ("rmsnorm",), "bias": (False,),
         "activation": tuple(_T5_ACTIVATIONS.values()), "head_size": None, "scale_attention": (False,), "scale_logits": None},
        _t5_table, _decoder_head, _read_t5, _write_t5, tied_by_file=True,
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
