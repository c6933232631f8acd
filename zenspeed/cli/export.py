"""export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from zenspeed.cli.app import CheckpointName, RunFolder, app
from zenspeed.errors import InputError

if TYPE_CHECKING:
    from zenspeed.export.run import Target

TARGETS, BITS = ("hf", "onnx", "torch", "aoti", "gguf"), ("int8", "int4")


@app.command()
def export(
    run: RunFolder,
    to: Annotated[
        str, typer.Option(help="hf (Hugging Face), onnx, torch (torch.export), aoti (the same, compiled), gguf (llama.cpp).")
    ] = "hf",
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: RUN/export-TARGET.")] = None,
    quantize: Annotated[str | None, typer.Option(help="int8 or int4, with onnx or gguf; says what it costs.")] = None,
    license_name: Annotated[str | None, typer.Option("--license", help="Licence for the model card.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="RUN is an exported folder: compare its files' checksums.")] = False,
    runtime_python: Annotated[
        Path | None, typer.Option(help="A Python that has llama_cpp, to try --to gguf; default: this one.")
    ] = None,
    checkpoint: CheckpointName = None,
) -> None:
    """Write a run's model for other programs; kept only if they give the trained model's answers."""
    if to not in TARGETS:
        raise InputError(f"--to {to}: is none of {', '.join(TARGETS)}")
    if quantize is not None and quantize not in BITS:
        raise InputError(f"--quantize {quantize}: is none of {', '.join(BITS)}")
    from zenspeed.export.run import export as write
    from zenspeed.export.run import verify as compare

    if verify:
        print(f"{run}: {compare(run)} files are as they were written")
        return
    bits, target = cast("Literal['int8', 'int4'] | None", quantize), cast("Target", to)
    options = {"checkpoint": checkpoint, "license_name": license_name, "runtime_python": runtime_python}
    print(write(run, target, out, quantize=bits, **options))  # type: ignore[arg-type]
