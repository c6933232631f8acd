"""What a Transformer is made of, as data: `ModelConfig`, and the presets that fill it in.

A preset only sets defaults; any key given beside it wins. No torch here, so that a recipe is checked in milliseconds.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from zenspeed.config import Config

_BERT: dict[str, Any] = {
    "architecture": "encoder", "position": "learned", "norm": "layernorm", "norm_placement": "post", "norm_epsilon": 1e-12,
    "embedding_norm": True, "activation": "gelu", "bias": True, "qk_norm": False, "tie_embeddings": True, "token_types": 2,
    "pool": "first", "pooler": True, "init": "normal", "dropout": 0.1, "context": 512,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    # A small modern GPT: rotary positions, RMSNorm, QK-norm, squared ReLU, no biases, untied head
    # (Su et al. 2104.09864, Zhang & Sennrich 1910.07467, Dehghani et al. 2302.05442, So et al. 2109.08668).
    "gpt": {
        "position": "rotary", "norm": "rmsnorm", "activation": "relu_squared", "bias": False, "qk_norm": True,
        "tie_embeddings": False, "init": "zero_out",
    },
    # Radford et al. 2019, as in Hugging Face's GPT2LMHeadModel.
    "gpt2": {
        "position": "learned", "norm": "layernorm", "norm_epsilon": 1e-5, "activation": "gelu_tanh", "bias": True,
        "qk_norm": False, "tie_embeddings": True, "init": "gpt2",
    },
    # Touvron et al. 2302.13971, as in Hugging Face's LlamaForCausalLM.
    "llama": {
        "position": "rotary", "norm": "rmsnorm", "norm_epsilon": 1e-6, "activation": "swiglu", "bias": False,
        "qk_norm": False, "tie_embeddings": False, "init": "gpt2",
    },
    # Devlin et al. 1810.04805, as in Hugging Face's BertModel.
    "bert": _BERT,
    # Liu et al. 1907.11692: BERT with one token type and other names of its heads.
    "roberta": {**_BERT, "norm_epsilon": 1e-5, "token_types": 1},
    # Qwen3 (2505.09388): Llama with norms of queries and keys; Qwen2 has qkv_bias true and qk_norm false instead.
    "qwen": {
        "position": "rotary", "rotary_base": 1e6, "norm": "rmsnorm", "norm_epsilon": 1e-6, "activation": "swiglu",
        "bias": False, "qk_norm": True, "qk_norm_weights": True, "tie_embeddings": False, "init": "gpt2",
    },
    # Vaswani et al. 1706.03762: encoder and decoder with one embedding, which is the head as well.
    "transformer": {
        "architecture": "encoder_decoder", "position": "sinusoidal", "norm": "layernorm", "norm_placement": "post",
        "norm_epsilon": 1e-5, "activation": "relu", "bias": True, "qk_norm": False, "tie_embeddings": True,
        "scale_embeddings": True, "init": "xavier", "dropout": 0.1,
    },
    # Raffel et al. 1910.10683, as in Hugging Face's T5ForConditionalGeneration; version 1.1 has activation geglu, an
    # untied head and so no scale_logits.
    "t5": {
        "architecture": "encoder_decoder", "position": "relative", "norm": "rmsnorm", "norm_epsilon": 1e-6,
        "activation": "relu", "bias": False, "qk_norm": False, "tie_embeddings": True, "scale_attention": False,
        "scale_logits": True, "init": "t5", "dropout": 0.1,
    },
    # Bachlechner et al. 2003.04887: no norms; every part of a block is multiplied by a weight that starts at 0.
    "rezero": {
        "position": "learned", "norm_placement": "rezero", "activation": "relu", "bias": True, "qk_norm": False,
        "tie_embeddings": False, "init": "xavier",
    },
    # Elman 1990 and Hochreiter & Schmidhuber 1997, torch's own nn.RNN and nn.LSTM.
    "rnn": {"architecture": "recurrent", "cell": "rnn", "position": "none", "layers": 2, "init": "normal", "pool": "last"},
    "lstm": {"architecture": "recurrent", "cell": "lstm", "position": "none", "layers": 2, "init": "normal", "pool": "last"},
}  # fmt: skip


class ModelConfig(Config):
    """One configurable Transformer. The vocabulary size comes from the tokenizer, the head from the task."""

    preset: Literal["gpt", "gpt2", "llama", "qwen", "bert", "roberta", "transformer", "t5", "rezero", "rnn", "lstm"] = "gpt"
    """Family that sets the defaults of the keys below."""
    architecture: Literal["decoder", "encoder", "encoder_decoder", "recurrent", "transformers"] = "decoder"
    """decoder: a token sees what is before it. encoder: it sees both sides. encoder_decoder: from one text to another.
    recurrent: no attention; of the keys below it reads layers, width, cell, dropout, tie_embeddings and those of heads."""
    transformers: dict[str, Any] | None = None
    """With architecture transformers: the config.json of a model of that package, written here when one is loaded."""
    cell: Literal["rnn", "lstm"] = "lstm"
    """What a recurrent model is made of."""
    huggingface: str | None = None
    """Folder of Hugging Face layout, or a name on the hub: training starts from its weights, and its config decides all keys
    but dropout, pool and pooler."""
    from_run: str | None = None
    """Folder of a finished run: training starts from its weights, under a new head if the task is another, with its tokenizer;
    its config decides all keys but dropout, pool and pooler."""
    vocab_size: int | None = Field(None, ge=1)
    """Rows of the embedding; null: as many as the tokenizer has tokens."""
    layers: int = Field(6, ge=1)
    """Number of blocks; of an encoder_decoder, in each of the two."""
    decoder_layers: int | None = Field(None, ge=1)
    """Blocks of the decoder of an encoder_decoder; null: as many as `layers`."""
    width: int = Field(256, ge=2)
    """Size of the residual stream."""
    base_width: int | None = Field(None, ge=2)
    """Of a decoder: width at which its rates were tuned. Initialisation, scores, logits and rates are scaled with the width so
    that the best rates stay where they were there (µP, Yang et al. 2203.03466); null: off. Where head_size is null, the number
    of heads is taken to be the same at both widths."""
    heads: int = Field(4, ge=1)
    """Attention heads; `width` is divided among them."""
    head_size: int | None = Field(None, ge=1)
    """Size of a head; null: width / heads."""
    kv_heads: int | None = Field(None, ge=1)
    """Key and value heads, a divisor of `heads` (grouped-query attention); null: as many as `heads`."""
    feed_forward: int | None = Field(None, ge=1)
    """Inner size of the feed-forward part; null: 4 × width, for swiglu and geglu 8/3 × width rounded up to a multiple of 64."""
    context: int = Field(256, ge=2)
    """Tokens in a training sequence, and the longest text that learned positions can take."""
    position: Literal["learned", "sinusoidal", "rotary", "relative", "alibi", "none"] = "rotary"
    """How the model knows the order of tokens: added to embeddings (learned, sinusoidal), turned into queries and keys
    (rotary), or added to scores (relative: T5's learned bias; alibi: falling with distance)."""
    relative_buckets: int = Field(32, ge=4)
    """Distances that the relative bias tells apart."""
    relative_distance: int = Field(128, ge=2)
    """Distance from which on the relative bias is the same."""
    window: int | None = Field(None, ge=1)
    """A token attends to so many tokens back, itself included (in an encoder forward as well); null: to all."""
    rotary_base: float = Field(10_000.0, gt=0)
    """Base of the rotary angles."""
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    """Normalization."""
    norm_placement: Literal["pre", "post", "rezero"] = "pre"
    """pre: before each part of a block, and at the end. post: after each sum, as in 2017. rezero: no norms, but a weight of
    each block, 0 at first, times what its parts add."""
    embedding_norm: bool = False
    """Normalizes the sum of embeddings as well."""
    norm_epsilon: float = Field(1e-6, gt=0)
    """Added to the variance in every normalization."""
    activation: Literal["gelu", "gelu_tanh", "relu", "relu_squared", "swiglu", "geglu"] = "relu_squared"
    """Non-linearity of the feed-forward part."""
    experts: int = Field(0, ge=0)
    """Feed-forward parts of a block, of which a router picks some for each token; 0: one for all."""
    experts_per_token: int = Field(2, ge=1)
    """How many of them a token goes through."""
    expert_balance: float = Field(0.01, ge=0)
    """Weight of the loss that keeps experts evenly used, in nats a target; in training only."""
    bias: bool = False
    """Biases in linear layers and LayerNorms."""
    qkv_bias: bool | None = None
    """Biases of queries, keys and values; null: as `bias`."""
    qk_norm: bool = True
    """Normalizes queries and keys per head: steadier training at high learning rates."""
    qk_norm_weights: bool = False
    """The norms of queries and keys have weights."""
    scale_attention: bool = True
    """Divides scores by the square root of a head's size; T5 does not."""
    scale_embeddings: bool = False
    """Multiplies token embeddings by the square root of `width`, as in 2017."""
    scale_logits: bool = False
    """Divides what the head of an encoder_decoder reads by the square root of `width`, as T5 with tied embeddings."""
    tie_embeddings: bool = False
    """The output head shares the token embedding's weights."""
    token_types: int = Field(0, ge=0)
    """Kinds of tokens that have an embedding of their own (BERT: first and second text of a pair); 0: none."""
    pool: Literal["first", "mean", "last"] = "last"
    """What stands for a whole text under a label or embedding head: its first token, its last, or the mean of all."""
    pooler: bool = False
    """A label head reads tanh of a linear layer of the pooled vector, as BERT's, not the vector itself."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on embeddings and on what each part adds to the residual stream."""
    ngrams: tuple[int, ...] = ()
    """Orders of n-grams whose hashed embeddings are added to the token's, such as [2, 3, 4]; for small vocabularies."""
    ngram_rows: int = Field(16_384, ge=2)
    """Rows of the table of each order."""
    ngram_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of n-gram embeddings left out in training, each order and place by itself."""
    logit_softcap: float | None = Field(None, gt=0)
    """Squashes logits to ±cap with cap·tanh(logits/cap); null: off."""
    init: Literal["zero_out", "gpt2", "normal", "xavier", "t5"] = "zero_out"
    """Initialisation, see the table in models/initial.py."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {**PRESETS.get(str(data.get("preset", "gpt")), {}), **data}

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.huggingface is not None and self.from_run is not None:
            raise ValueError("huggingface and from_run both give the weights to start from; give one of them")
        if (self.architecture == "transformers") != (self.transformers is not None):
            raise ValueError("architecture transformers and key transformers go together; set model.huggingface to a folder")
        if self.architecture in ("recurrent", "transformers"):
            return self
        if self.width % self.heads and self.head_size is None:
            raise ValueError(
                f"width {self.width} is not divisible by heads {self.heads}: {self.width} / {self.heads} = "
                f"{self.width / self.heads:.2f}; take heads that divide it, such as {_divisor(self.width, self.heads)}"
            )
        if self.heads % self.num_kv_heads:
            raise ValueError(
                f"heads {self.heads} is not divisible by kv_heads {self.kv_heads}; "
                f"take {_divisor(self.heads, self.num_kv_heads)}"
            )
        if any(order < 2 for order in self.ngrams):
            raise ValueError(f"ngrams {list(self.ngrams)}: an n-gram has at least 2 tokens; take orders such as [2, 3, 4]")
        if self.position == "rotary" and self.head_width % 2:
            raise ValueError(
                f"rotary positions need an even head width, width / heads = {self.width} / {self.heads} = {self.head_width}"
            )
        if self.position == "sinusoidal" and self.width % 2:
            raise ValueError(f"sinusoidal positions need an even width, not {self.width}")
        if self.position == "relative" and self.relative_distance <= self.relative_buckets // 2:
            raise ValueError(
                f"relative_distance {self.relative_distance} is too small for {self.relative_buckets} buckets, "
                f"half of which are single distances; take at least {self.relative_buckets // 2 + 1}"
            )
        if self.base_width is not None and (self.architecture != "decoder" or self.init not in ("zero_out", "gpt2", "normal")):
            raise ValueError("base_width: is for a decoder with init zero_out, gpt2 or normal; take it away")
        if self.experts and self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token {self.experts_per_token}, but there are {self.experts} experts; take fewer")
        if self.qk_norm_weights and not self.qk_norm:
            raise ValueError("qk_norm_weights true needs qk_norm true")
        return self

    @property
    def head_width(self) -> int:
        return self.head_size or self.width // self.heads

    @property
    def width_ratio(self) -> float:
        """Width over `base_width`; 1 without."""
        return 1.0 if self.base_width is None else self.width / self.base_width

    @property
    def attention_scale(self) -> float | None:
        """What scores are multiplied by; None: 1 / √head width. With `base_width` it falls as 1 / head width."""
        if not self.scale_attention:
            return 1.0
        if self.base_width is None or self.head_size is not None:
            return None
        return self.width_ratio**-0.5 * self.head_width**-0.5

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def gated(self) -> bool:
        return self.activation in ("swiglu", "geglu")

    @property
    def inner_width(self) -> int:
        if self.feed_forward is not None:
            return self.feed_forward
        return -(-8 * self.width // (3 * 64)) * 64 if self.gated else 4 * self.width


def _divisor(number: int, near: int) -> int:
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - near))
