"""Architectures that we do not have ourselves, through `transformers`, behind the same `forward` as ours.

    name or folder ─ fetch ─ folder ─┬─ ours, if hf.py knows it and all its options
                                     └─ AutoModelFor… of transformers, in `AutoTransformer`

`transformers` gets padded batches, one document a row, and answers with logits; packing, pooling, and the sum of losses are
ours. The whole config.json is kept in `ModelConfig.transformers`, so that a run can be opened again without the folder.
`transformers` is an optional package and imported only here, when a model needs it. No code of a folder is ever run.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zenspeed.config import InputError, validate
from zenspeed.models.heads import Head, Reduction, span_loss
from zenspeed.models.hf import Loaded, LoadReport, can_load, load_huggingface, read_json, sentence_pooling, shorten
from zenspeed.models.presets import ModelConfig
from zenspeed.ops.loss import IGNORE
from zenspeed.ops.pool import pool_documents, row_documents
from zenspeed.ops.position import positions_in_documents

_CLASSES: dict[Head, str] = {
    "language": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM", "label": "AutoModelForSequenceClassification",
    "span": "AutoModelForQuestionAnswering", "embedding": "AutoModel",
}  # fmt: skip
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*/config.json"]


def fetch(name: str, *, endpoint: str | None = None, offline: bool = False, revision: str | None = None) -> Path:
    """The folder `name`, or the one that the repository `name` is downloaded to, without pickles.

    Args:
        endpoint: address of a mirror of the hub. offline: only what was downloaded before. revision: branch, tag or commit.

    Raises:
        InputError: neither a folder nor a repository that can be had.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise InputError(f"model.huggingface: {name} is not a folder; to download it: pip install huggingface_hub") from None
    try:
        return Path(
            snapshot_download(name, endpoint=endpoint, local_files_only=offline, revision=revision, allow_patterns=_FILES)
        )
    except HFValidationError:
        raise InputError(f"model.huggingface: {name}: no such folder, and no name of a repository") from None
    except LocalEntryNotFoundError:
        why = "was not downloaded before, and this is offline" if offline else "the hub cannot be reached"
        raise InputError(f"model.huggingface: {name}: no such folder, and as a repository {why}") from None
    except (HfHubHTTPError, OSError) as error:
        raise InputError(f"model.huggingface: {name}: cannot be downloaded: {str(error).splitlines()[0]}") from None


def load_pretrained(
    name: str | Path,
    head: Head | None = None,
    labels: int | None = None,
    *,
    seed: int = 0,
    strict: bool = True,
    endpoint: str | None = None,
    offline: bool = False,
    revision: str | None = None,
) -> Loaded:
    """A folder or repository of Hugging Face layout as a model under `head`: ours if we have its architecture.

    Arguments are those of `fetch` and `hf.load_huggingface`.

    Raises:
        InputError: nothing there; an architecture that neither we nor `transformers` have, or that has no such head; weights
            that are missing, named.
    """
    folder = fetch(str(name), endpoint=endpoint, offline=offline, revision=revision)
    refusal = can_load(folder)
    if refusal is None:
        return load_huggingface(folder, head, labels, seed=seed, strict=strict)
    return _load_auto(folder, head, labels, seed, strict, refusal)


def _load_auto(folder: Path, head: Head | None, labels: int | None, seed: int, strict: bool, refusal: InputError) -> Loaded:
    theirs = read_json(folder / "config.json")
    config = _model_config(folder, theirs, head or _saved_head(theirs), refusal)
    head = head or _saved_head(theirs)
    options = {"num_labels": labels} if head == "label" and labels else {}
    cls = _auto_class(head, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model, info = cls.from_pretrained(
                folder, output_loading_info=True, use_safetensors=True, local_files_only=True, trust_remote_code=False,
                dtype=torch.float32, ignore_mismatched_sizes=bool(options), **options,
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
            raise InputError(f"{folder}: transformers cannot load it: {str(error).splitlines()[0]}") from None
    body = f"{model.base_model_prefix}."
    mismatched = sorted(f"{name} {tuple(shape)}" for name, shape, _ in info["mismatched_keys"])
    fresh = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
    absent = [name for name in fresh if head == "embedding" or name.startswith(body)]
    report = LoadReport(absent, sorted(info["unexpected_keys"]) + mismatched, [n for n in fresh if n not in absent])
    if absent and strict and head != "embedding":
        raise InputError(f"{folder}: the weights do not fit config.json: {len(absent)} missing: {shorten(absent)}")
    if absent and strict and (needed := [name for name in absent if "pooler" not in name]):
        raise InputError(f"{folder}: the weights do not fit config.json: {len(needed)} missing: {shorten(needed)}")
    config = config.model_copy(update={"transformers": model.config.to_dict()})
    return Loaded(AutoTransformer(config, model.config.vocab_size, head, labels or 0, model).eval(), config, report)


def _saved_head(theirs: dict[str, Any]) -> Head:
    saved = (theirs.get("architectures") or [""])[0]
    endings: dict[str, Head] = {
        "CausalLM": "language", "LMHeadModel": "language", "ConditionalGeneration": "language", "MaskedLM": "masked",
        "ForPreTraining": "masked", "SequenceClassification": "label", "QuestionAnswering": "span",
    }  # fmt: skip
    return next((head for ending, head in endings.items() if saved.endswith(ending)), "embedding")


def _model_config(folder: Path, theirs: dict[str, Any], head: Head, refusal: InputError) -> ModelConfig:
    """Their config.json inside ours, whose sizes are for people to read."""
    kind = theirs.get("model_type")
    try:
        from transformers import CONFIG_MAPPING
    except ImportError:
        raise InputError(f"{refusal}; with the package transformers more can be: pip install transformers") from None
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise InputError(f"{refusal}; transformers does not know it either")
    parsed = CONFIG_MAPPING[kind].from_dict(theirs)
    longest = getattr(parsed, "max_position_embeddings", None) or getattr(parsed, "n_positions", None) or 512
    fields = {
        "architecture": "transformers", "transformers": parsed.to_dict(), "context": longest,
        "layers": getattr(parsed, "num_hidden_layers", None) or 1, "width": getattr(parsed, "hidden_size", None) or 2,
        "heads": 1, "pool": "last" if head == "language" else "mean",
    }  # fmt: skip
    pooling = sentence_pooling(folder) if head == "embedding" else {}
    return validate(ModelConfig, fields | pooling, name=str(folder / "config.json"))


def _auto_class(head: Head, config: ModelConfig) -> Any:
    """The class of transformers, which must have this architecture."""
    import transformers

    assert config.transformers is not None
    name = _CLASSES[head]
    if head == "language" and config.transformers.get("is_encoder_decoder"):
        name = "AutoModelForSeq2SeqLM"
    cls = getattr(transformers, name)
    kind = config.transformers["model_type"]
    if transformers.CONFIG_MAPPING[kind] not in cls._model_mapping:
        raise InputError(f"model.huggingface: transformers has no {kind} with a {head} head ({name})")
    return cls


class _Rows(NamedTuple):
    """Where the tokens of a packed batch go, one document a row."""

    real: Tensor
    """(B, T), false for padding."""
    row: Tensor
    """(n,) of each real token, and its place in the row."""
    place: Tensor
    num: int

    @classmethod
    def of(cls, documents: Tensor, count: int) -> _Rows:
        real = documents >= 0
        return cls(real, documents[real], positions_in_documents(documents)[real], count)

    def spread(self, x: Tensor, empty: int) -> Tensor:
        """(B, T) -> (N, longest)"""
        out = x.new_full((self.num, int(self.place.max()) + 1), empty)
        return out.index_put((self.row, self.place), x[self.real])

    def gather(self, x: Tensor) -> Tensor:
        """(N, longest, …) -> (B, T, …), zeros for padding."""
        out = x.new_zeros(*self.real.shape, *x.shape[2:])
        return out.masked_scatter(self.real.view(*self.real.shape, *(1,) * (x.ndim - 2)), x[self.row, self.place])


class AutoTransformer(nn.Module):
    """A model of transformers under one of our heads; `forward` is that of `build.Model` and `EncoderDecoder`.

    Args:
        model: made before; default: from `config.transformers`, with weights drawn from torch's global generator.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, head: Head, labels: int = 0, model: Any = None) -> None:
        super().__init__()
        self.config, self.vocab_size, self.kind, self.labels = config, vocab_size, head, labels
        self.model = self._new() if model is None else model
        self.pad = self.model.config.pad_token_id
        if self.pad is None:
            self.pad = self.model.config.pad_token_id = 0
        self._accepted = set(inspect.signature(self.model.forward).parameters)
        self.blocks = nn.ModuleList()
        # A tied weight has two names there; here, as everywhere, it has the first.
        self.register_state_dict_post_hook(_drop_tied)
        self.register_load_state_dict_post_hook(_tie)

    def _new(self) -> Any:
        from transformers import CONFIG_MAPPING

        assert self.config.transformers is not None
        theirs: Any = CONFIG_MAPPING[self.config.transformers["model_type"]].from_dict(self.config.transformers)
        if self.kind == "label" and self.labels:
            theirs.num_labels = self.labels
        theirs.vocab_size = self.vocab_size
        with torch.device("cpu"):  # their buffers are computed when the model is made, which "meta" would lose
            return _auto_class(self.kind, self.config).from_config(theirs)

    def forward(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        token_types: Tensor | None = None,
        num_documents: int | None = None,
        source: Tensor | None = None,
        source_documents: Tensor | None = None,
        targets: Tensor | None = None,
        reduction: Reduction = "sum",
    ) -> Tensor:
        """The head's output, or the loss in nats (fp32) when `targets` are given; see heads.py and encoder_decoder.py."""
        if documents is None:
            documents, num_documents = row_documents(tokens), len(tokens)
        elif self.kind == "language" and source is None:
            documents = _number_runs(documents)
            num_documents = None
        count = int(documents.max()) + 1 if num_documents is None else num_documents
        rows = _Rows.of(documents, count)
        ones = torch.ones_like(tokens)
        inputs = {"input_ids": rows.spread(tokens, self.pad), "attention_mask": rows.spread(ones, 0)}
        if source is not None:
            sources = _Rows.of(row_documents(source) if source_documents is None else source_documents, count)
            inputs = {
                "input_ids": sources.spread(source, self.pad),
                "attention_mask": sources.spread(torch.ones_like(source), 0),
                "decoder_input_ids": inputs["input_ids"],
                "decoder_attention_mask": inputs["attention_mask"],
            }
        many_types = getattr(self.model.config, "type_vocab_size", 2) > 1  # RoBERTa takes types, but has only one
        if token_types is not None and many_types and "token_type_ids" in self._accepted:
            inputs["token_type_ids"] = rows.spread(token_types, 0)
        output = self.model(**inputs)
        if self.kind == "label":
            return _label_loss(output.logits, targets, reduction)
        if self.kind == "span":
            logits = rows.gather(torch.stack([output.start_logits, output.end_logits], -1))
            return logits if targets is None else span_loss(logits, documents, count, targets, reduction)
        if self.kind == "embedding":
            assert targets is None, "an embedding has no targets of its own"
            hidden = rows.gather(output.last_hidden_state)
            return F.normalize(pool_documents(hidden, documents, count, self.config.pool).float(), dim=1)
        logits = rows.gather(output.logits)
        if targets is None:
            return logits
        kept = targets != IGNORE
        losses = F.cross_entropy(logits[kept].float(), targets[kept], reduction=reduction)
        return losses if reduction == "sum" else torch.zeros(targets.shape, device=losses.device).masked_scatter(kept, losses)

    @property
    def embedding(self) -> nn.Module:
        """Of tokens."""
        return self.model.get_input_embeddings()

    @torch.no_grad()
    def init_weights(self, seed: int | None = None) -> None:
        """Weights as transformers draws them."""
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.model.load_state_dict(self._new().state_dict())

    def num_parameters(self) -> int:
        """Weights, a tied embedding counted once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, context: int) -> float:
        """Of linear layers and scores, forward and backward, for one token; as if every linear layer were applied to it."""
        linear = sum(m.weight.numel() for m in self.model.modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D")
        return 3 * 2.0 * (linear + 2 * self.config.layers * self.config.width * context)


def _label_loss(logits: Tensor, targets: Tensor | None, reduction: Reduction) -> Tensor:
    if targets is None:
        return logits
    if targets.is_floating_point():
        return F.mse_loss(logits.squeeze(1).float(), targets.float(), reduction=reduction)
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE, reduction=reduction)


def _number_runs(documents: Tensor) -> Tensor:
    """Documents of a language model's batch, whose numbers begin anew in each row, numbered over the whole batch."""
    starts = (positions_in_documents(documents) == 0) & (documents >= 0)
    numbers = starts.flatten().cumsum(0).view(documents.shape) - 1
    return torch.where(documents >= 0, numbers, -1)


def _drop_tied(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    single = {prefix + name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    for name in [name for name in state if name.startswith(prefix) and name not in single]:
        del state[name]


def _tie(module: nn.Module, incompatible: Any) -> None:
    assert isinstance(module, AutoTransformer)
    module.model.tie_weights()
    own = dict(module.named_parameters())
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name in own]
