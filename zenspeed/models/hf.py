"""Weights in from and out to folders of Hugging Face layout, config.json beside safetensors.

Which of our parameters is made of which of theirs is a table (hf_families.py), read in one direction to load and in the other
to save. Strict where it matters: a weight of the body that is missing, left over or of another shape is an error that lists
it. A head is another matter: who fine-tunes puts a new head on an old body, so that heads of the file that are not used, and
weights that are new, are told in a `LoadReport`. Only safetensors are read; a .bin file is a pickle, which runs code of its
author when it is opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from zenspeed.config import InputError, read_text, validate, write_atomically
from zenspeed.models.build import build_model
from zenspeed.models.heads import Head
from zenspeed.models.hf_families import FAMILIES, HEAD_PREFIXES, Family, Source, Table, obstacles
from zenspeed.models.initial import draw_weights
from zenspeed.models.presets import ModelConfig

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


_POOLING = "1_Pooling/config.json"  # of sentence-transformers
_POOLING_KEYS = {
    "first": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "last": "pooling_mode_lasttoken"
}  # fmt: skip


class LoadReport(NamedTuple):
    """What became of the weights of a folder."""

    missing: list[str]
    """Weights of the body that the folder does not have; drawn at random. Always empty when loading is strict."""
    unused: list[str]
    """Weights of the folder that the model has no place for: other heads."""
    initialised: list[str]
    """Weights of our head that are new, drawn at random: to be trained."""

    def __str__(self) -> str:
        said = {"missing, drawn at random": self.missing, "not used": self.unused, "new, to be trained": self.initialised}
        lines = [f"{len(names)} weights {what}: {shorten(names)}" for what, names in said.items() if names]
        return "\n".join(lines) or "all weights loaded, none left over"


class Loaded(NamedTuple):
    """A model in evaluation mode, fp32, on the CPU; its config; and how its weights were found."""

    model: nn.Module
    config: ModelConfig
    report: LoadReport


def from_huggingface(folder: Path | str) -> tuple[nn.Module, ModelConfig]:
    """The model in `folder` with the head that it was saved with, and its config; errors as of `load_huggingface`.

    Raises:
        InputError: also when the head's weights are not there.
    """
    loaded = load_huggingface(folder)
    if loaded.report.initialised:
        raise InputError(f"{folder}: {len(loaded.report.initialised)} missing: {shorten(loaded.report.initialised)}")
    return loaded.model, loaded.config


def load_huggingface(
    folder: Path | str, head: Head | None = None, labels: int | None = None, *, seed: int = 0, strict: bool = True
) -> Loaded:
    """The model in `folder` under `head`.

    Args:
        head: default: the one it was saved with; a bare encoder becomes an `embedding`.
        labels: outputs of a label head; default: as many as the file's. Another number makes a new head.
        seed: of weights that are not in the folder.
        strict: a body whose weights are not all there is refused; else they are drawn at random.

    Raises:
        InputError: no config.json or safetensors; another architecture or an option that we do not have; a file that is
            damaged; weights missing, left over or misshaped, all listed.
    """
    folder = Path(folder)
    family, theirs, fields = _read_config(folder)
    head, vocab_size = head or _saved_head(theirs, family), int(theirs["vocab_size"])
    if head not in family.architectures:
        raise InputError(f"{folder}: a {theirs['model_type']} has no {head} head; it has {', '.join(family.architectures)}")
    if head == "embedding":
        fields |= sentence_pooling(folder)
    if family.tied_by_file and not fields["tie_embeddings"]:
        fields["tie_embeddings"] = not any(name == "lm_head.weight" for name, _ in _read_weights(folder))
    preset = family.preset or theirs["model_type"]
    config = validate(ModelConfig, {"preset": preset, **fields}, name=str(folder / "config.json"))
    with torch.device("meta"):
        model = build_model(config, vocab_size, head, labels or _num_labels(theirs))
    model.to_empty(device="cpu")
    table = _whole_table(family, config, head, family.offset(theirs))
    report = _fill(model, family, table, folder, strict, free_head=labels is not None)
    if new := {*report.missing, *report.initialised}:
        draw_weights(model, config, seed, only=new)
    return Loaded(model.eval(), config, report)


def can_load(folder: Path | str) -> InputError | None:
    """None if the config.json of `folder` is of a model that we have, with all its options; else what stands against it."""
    path = Path(folder) / "config.json"
    read_json(path)  # a file that cannot be read is an error of its own
    try:
        _read_config(Path(folder))
    except InputError as error:
        return error
    return None


def _read_config(folder: Path) -> tuple[Family, dict[str, Any], dict[str, Any]]:
    """The family of config.json, the file, and the keys of our config that come of it."""
    theirs = read_json(folder / "config.json")
    kind = theirs.get("model_type")
    if kind not in FAMILIES:
        raise InputError(f"{folder / 'config.json'}: model_type {kind!r} cannot be loaded; known: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    for key, wanted in family.required.items():
        if (value := theirs.get(key, wanted)) != wanted:
            raise InputError(f"{folder / 'config.json'}: {key} {value!r} is not supported for {kind}, only {wanted!r}")
    try:
        fields, _ = family.read_config(theirs), int(theirs["vocab_size"])
    except KeyError as error:
        raise InputError(f"{folder / 'config.json'}: {error.args[0]} is not there; a {kind} config needs it") from None
    return family, theirs, fields


class Layout(NamedTuple):
    """A model as Hugging Face names it."""

    kind: str
    """model_type, a key of `FAMILIES`."""
    config: dict[str, Any]
    """What config.json holds."""
    tensors: dict[str, Tensor]


def huggingface_layout(model: nn.Module, end_of_text: int | None = None, label_names: Sequence[str] = ()) -> Layout:
    """The model's weights and config in the family that fits; `end_of_text` becomes the config's bos and eos token.

    Raises:
        InputError: the model has no such layout; the keys that stand in the way are named.
    """
    config = model.config
    assert isinstance(config, ModelConfig)
    head: Head = getattr(model, "kind", "language")
    in_the_way = {name: obstacles(config, family, head) for name, family in FAMILIES.items()}
    kind = min(in_the_way, key=lambda name: (len(in_the_way[name]), name != config.preset, name == "mistral"))
    if in_the_way[kind]:
        raise InputError(f"this model has no Hugging Face layout: as {kind} it would need {', '.join(in_the_way[kind])}")
    family, parameters = FAMILIES[kind], dict(model.named_parameters())
    written = family.write_config(config)
    tensors: dict[str, Tensor] = {}
    for name, source in _whole_table(family, config, head, family.offset(written)).items():
        parts = parameters[name].detach().cpu().split(source.rows or len(parameters[name]))
        for their_name, part in zip(source.names, parts, strict=True):
            part = torch.cat([part.new_zeros(source.skip, *part.shape[1:]), part]) if source.skip else part
            tensors[their_name] = (part.t() if source.transposed else part).clone(memory_format=torch.contiguous_format)
    theirs = {
        "architectures": [family.architectures[head]], "model_type": kind, "vocab_size": model.vocab_size,
        "bos_token_id": end_of_text, "eos_token_id": end_of_text, "tie_word_embeddings": config.tie_embeddings,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."), **family.required, **written,
    }  # fmt: skip
    if head == "label":
        theirs |= _label_names(int(model.labels), label_names)  # type: ignore[arg-type]
    return Layout(kind, theirs, tensors)


def to_huggingface(
    model: nn.Module, folder: Path | str, end_of_text: int | None = None, label_names: Sequence[str] = ()
) -> None:
    """Writes `folder`/config.json and model.safetensors, which `transformers` opens as one of `FAMILIES`.

    Each file appears whole or not at all; errors as of `huggingface_layout`.
    """
    folder, layout, config = Path(folder), huggingface_layout(model, end_of_text, label_names), model.config
    assert isinstance(config, ModelConfig)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{WEIGHTS}"
    save_file(layout.tensors, temporary, metadata={"format": "pt"})
    temporary.replace(folder / WEIGHTS)
    write_atomically(folder / "config.json", json.dumps(layout.config, indent=2) + "\n")
    if getattr(model, "kind", "language") == "embedding":
        (folder / _POOLING).parent.mkdir(exist_ok=True)
        modes = {key: config.pool == pool for pool, key in _POOLING_KEYS.items()}
        write_atomically(folder / _POOLING, json.dumps({"word_embedding_dimension": config.width, **modes}, indent=2) + "\n")


def _saved_head(theirs: dict[str, Any], family: Family) -> Head:
    """By the name of their class; a body without a head is a language model or an embedding, whichever it can be."""
    saved = (theirs.get("architectures") or [""])[0]
    by_name = {name: head for head, name in family.architectures.items()}
    if saved in by_name:
        return by_name[saved]
    if saved.endswith("ForPreTraining"):
        return "masked"
    return "language" if "language" in family.architectures else "embedding"


def _num_labels(theirs: dict[str, Any]) -> int:
    return int(theirs.get("num_labels") or len(theirs.get("id2label") or (0, 1)))


def _label_names(count: int, names: Sequence[str]) -> dict[str, Any]:
    names = names or [f"LABEL_{i}" for i in range(count)]
    assert len(names) == count, f"{len(names)} names for {count} labels"
    return {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {name: i for i, name in enumerate(names)}}


def sentence_pooling(folder: Path) -> dict[str, Any]:
    """How a folder of the sentence-transformers layout says that it pools; mean where it says nothing."""
    path = folder / _POOLING
    if not path.exists():
        return {"pool": "mean"}
    said = [key for key, value in read_json(path).items() if key.startswith("pooling_mode_") and value is True]
    found = [pool for pool, key in _POOLING_KEYS.items() if said == [key]]
    if not found:
        raise InputError(
            f"{path}: pools by {' and '.join(said) or 'nothing'}; known is one of {', '.join(_POOLING_KEYS.values())}"
        )
    return {"pool": found[0]}


def _whole_table(family: Family, config: ModelConfig, head: Head, offset: int) -> Table:
    body = family.table(config, offset)
    if config.architecture == "encoder" or (config.architecture == "decoder" and head != "language"):
        body = {f"body.{name}": source for name, source in body.items()}
    return body | family.head_table(config, head)


@torch.no_grad()
def _fill(model: nn.Module, family: Family, table: Table, folder: Path, strict: bool, free_head: bool) -> LoadReport:
    """Copies every weight of the folder to its place in `model`; an `InputError` lists all that do not fit.

    `free_head`: weights of a head with another shape are left out, not refused.
    """
    places: dict[str, tuple[Tensor, Source, str]] = {}  # their name -> the part of ours that it fills, and our name
    for name, parameter in model.named_parameters():
        source = table[name]
        for their_name, part in zip(source.names, parameter.split(source.rows or len(parameter)), strict=True):
            places[their_name] = (part, source, name)
    missing = set(places)
    unused: list[str] = []
    left_over: list[str] = []
    misshaped: list[str] = []
    tied = {"lm_head.weight", "lm_head.decoder.weight", "cls.predictions.decoder.weight"} - set(places)
    for their_name, tensor in _read_weights(folder):
        name = their_name if their_name.startswith((family.prefix, *HEAD_PREFIXES)) else family.prefix + their_name
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if name in tied or (name not in places and name.endswith(family.buffers)):
            continue
        of_head = name.startswith((*HEAD_PREFIXES, f"{family.prefix}pooler."))
        if name not in places:
            (unused if of_head else left_over).append(f"{their_name} {tuple(tensor.shape)}")
            continue
        part, source, _ = places[name]
        wanted = part.shape[::-1] if source.transposed else torch.Size((len(part) + source.skip, *part.shape[1:]))
        if tensor.shape == wanted:
            part.copy_(tensor.t() if source.transposed else tensor[source.skip :])
            missing.discard(name)
        elif of_head and free_head:
            unused.append(f"{their_name} {tuple(tensor.shape)}")
        else:
            misshaped.append(f"{their_name} is {tuple(tensor.shape)}, the config says {tuple(wanted)}")
            missing.discard(name)
    ours = {name: places[name][2] for name in sorted(missing)}
    absent = [name for name, own in ours.items() if not own.startswith("head.")]
    faults = {"missing": absent if strict else [], "left over": left_over, "misshaped": misshaped}
    if any(faults.values()):
        listed = "; ".join(f"{len(names)} {fault}: {shorten(names)}" for fault, names in faults.items() if names)
        raise InputError(f"{folder}: the weights do not fit config.json: {listed}")
    return LoadReport(
        missing=list(dict.fromkeys(ours[name] for name in absent)),
        unused=unused,
        initialised=[own for own in ours.values() if own.startswith("head.")],
    )


def shorten(names: list[str], most: int = 8) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of every weight in the safetensors file of `folder`, or in those that its index names."""
    if (folder / INDEX).exists():
        names = sorted({str(name) for name in read_json(folder / INDEX).get("weight_map", {}).values()})
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


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a JSON object, this is a {type(data).__name__}")
    return data
