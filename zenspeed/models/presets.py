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
}  # fmt: skip


class ModelConfig(Config):
    """One configurable Transformer. The vocabulary size comes from the tokenizer, the head from the task."""

    preset: Literal["gpt", "gpt2", "llama", "bert", "roberta"] = "gpt"
    """Family that sets the defaults of the keys below."""
    architecture: Literal["decoder", "encoder"] = "decoder"
    """decoder: a token sees what is before it. encoder: it sees both sides."""
    layers: int = Field(6, ge=1)
    """Number of blocks."""
    width: int = Field(256, ge=2)
    """Size of the residual stream."""
    heads: int = Field(4, ge=1)
    """Attention heads; `width` is divided among them."""
    kv_heads: int | None = Field(None, ge=1)
    """Key and value heads, a divisor of `heads` (grouped-query attention); null: as many as `heads`."""
    feed_forward: int | None = Field(None, ge=1)
    """Inner size of the feed-forward part; null: 4 × width, for swiglu 8/3 × width rounded up to a multiple of 64."""
    context: int = Field(256, ge=2)
    """Tokens in a training sequence, and the longest text that learned positions can take."""
    position: Literal["learned", "rotary", "none"] = "rotary"
    """How the model knows the order of tokens."""
    rotary_base: float = Field(10_000.0, gt=0)
    """Base of the rotary angles."""
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    """Normalization."""
    norm_placement: Literal["pre", "post"] = "pre"
    """pre: before each part of a block, and at the end. post: after each sum, as in 2017."""
    embedding_norm: bool = False
    """Normalizes the sum of embeddings as well."""
    norm_epsilon: float = Field(1e-6, gt=0)
    """Added to the variance in every normalization."""
    activation: Literal["gelu", "gelu_tanh", "relu", "relu_squared", "swiglu"] = "relu_squared"
    """Non-linearity of the feed-forward part."""
    bias: bool = False
    """Biases in linear layers and LayerNorms."""
    qk_norm: bool = True
    """Normalizes queries and keys per head, without weights: steadier training at high learning rates."""
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
    init: Literal["zero_out", "gpt2", "normal"] = "zero_out"
    """Initialisation, see the table in models/initial.py."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {**PRESETS.get(str(data.get("preset", "gpt")), {}), **data}

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.width % self.heads:
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
        return self

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def inner_width(self) -> int:
        if self.feed_forward is not None:
            return self.feed_forward
        return -(-8 * self.width // (3 * 64)) * 64 if self.activation == "swiglu" else 4 * self.width


def _divisor(number: int, near: int) -> int:
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - near))
