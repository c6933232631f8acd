"""Writers of a model: to Hugging Face layout, ONNX, programs of torch.export, and these compiled by AOTInductor."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torch._inductor.config
import torch.fx.experimental._config
from torch import nn

from zenspeed.config import InputError
from zenspeed.export.graph import NAMES, Graph, dynamic_shapes, graphs_of
from zenspeed.models.hf import to_huggingface
from zenspeed.text.tokenizer import Tokenizer

Bits = Literal["int8", "int4"]
OPSET = 21
BLOCK = 32
"""Weights that share a scale, int4."""


def write_huggingface(model: nn.Module, tokenizer: Tokenizer, folder: Path, labels: list[str]) -> None:
    """config.json, model.safetensors, generation_config.json and the tokenizer."""
    import json

    to_huggingface(model, folder, tokenizer.end_of_text, labels)
    tokenizer.save(folder)
    end = tokenizer.end_of_text
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": end, "eos_token_id": end}, indent=2) + "\n")


def _program(graph: Graph) -> Any:
    # Sizes of 0 and 1 are sizes like others: a decoder reads one token of one text at a time.
    with torch.no_grad(), _quiet(), torch.fx.experimental._config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        return torch.export.export(graph, graph.example(), dynamic_shapes=dynamic_shapes(graph), strict=False)


def write_programs(model: nn.Module, folder: Path) -> None:
    """A .pt2 file of each graph for `torch.export.load(path).module(check_guards=False)`, without any code of ours.

    Its guards say that a size is not 1, where the tracer took the general way; that way is right for 1 as well, as the gate
    shows by generating token by token.
    """
    for part, graph in graphs_of(model).items():
        torch.export.save(_program(graph), folder / f"{part}.pt2")


def write_compiled(model: nn.Module, folder: Path) -> None:
    """A .pt2 file of each graph as machine code, for `torch._inductor.aoti_load_package(path)`; weights inside.

    Raises:
        InputError: there is no C++ compiler, which only the export needs.
    """
    command = torch._inductor.config.cpp.cxx[-1]  # CXX, if that is set
    if shutil.which(command) is None:
        raise InputError(
            f"--to aoti: compiles the model, and there is no C++ compiler {command} on PATH; install it "
            "(Debian: apt-get install g++), name another by CXX=…, or take --to torch, which needs none"
        )
    for part, graph in graphs_of(model).items():
        program = _program(graph)
        with torch.no_grad(), _quiet():
            torch._inductor.aoti_compile_and_package(program, package_path=str(folder / f"{part}.pt2"))


def write_onnx(model: nn.Module, folder: Path, bits: Bits | None) -> None:
    """An .onnx file of each graph, weights inside; with `bits` those of products in int8 a column or int4 a block."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError:
            raise InputError(f"--to onnx: needs the package {package}; install zenspeed[export]") from None
    for part, graph in graphs_of(model).items():
        path, (inputs, outputs) = folder / f"{part}.onnx", NAMES[type(graph)]
        with _quiet():
            written: Any = torch.onnx.export(
                _program(graph), dynamo=True, input_names=inputs, output_names=outputs, opset_version=OPSET, verbose=False
            )
            written.save(path)
            if bits is not None:
                _quantize(path, bits)


def _quantize(path: Path, bits: Bits) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    if bits == "int8":
        whole = path.with_name("whole.onnx")
        path.replace(whole)
        quantize_dynamic(whole, path, weight_type=QuantType.QInt8, per_channel=True)
        whole.unlink()
        return
    quantizer = MatMulNBitsQuantizer(onnx.load(path), bits=4, block_size=BLOCK, is_symmetric=True, accuracy_level=1)
    quantizer.process()
    quantizer.model.save_model_to_file(str(path))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the packages' notes on what is no concern of ours."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
