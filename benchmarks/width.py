"""Does the best rate of a narrow model stay the best of a wide one? Losses over rates and widths, with and without base_width.

python benchmarks/width.py                       widths 64 and 512, 7 rates a factor of 2 apart, about half an hour
python benchmarks/width.py --steps 20 --widths 32 64 --rates 3
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from zenspeed import Recipe, train
from zenspeed.config import load
from zenspeed.display import Display

CENTRE = {"adamw": 4e-3, "muon": 2e-2}


def loss_at(optimizer: str, width: int, base: int | None, rate: float, options: argparse.Namespace) -> float:
    """Validation loss at the end; infinite for a run that came to none."""
    with tempfile.TemporaryDirectory() as folder:
        sets = [
            f"optim.name={optimizer}", f"optim.lr={rate}", f"optim.adam_lr={rate / 5}", f"model.width={width}",
            "model.layers=3", "model.heads=4", "model.context=64", f"model.base_width={json.dumps(base)}",
            "tokenizer.vocab_size=1024", "train.batch_size=32", f"train.steps={options.steps}", "evaluate.every=0",
            f"train.precision={options.precision}", "sample.prompts=[]", "log.tensorboard=false", "checkpoint.every=100000",
            f"run.folder={folder}/run",
        ]  # fmt: skip
        try:
            found = train(load(Recipe, None, sets), display=Display(enabled=False)).validation_loss
        except Exception as error:
            print(f"  {optimizer} {width} {rate:.2e}: {error}", flush=True)
            return float("inf")
    return float("inf") if found is None else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs=2, default=[64, 512])
    parser.add_argument("--rates", type=int, default=7)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    narrow, wide = options.widths
    rows = []
    for optimizer, centre in CENTRE.items():
        rates = [centre * 2.0 ** (i - options.rates // 2) for i in range(options.rates)]
        for width, base in ((narrow, None), (wide, narrow), (wide, None)):
            losses = [loss_at(optimizer, width, base, rate, options) for rate in rates]
            best = losses.index(min(losses))
            rows.append({"optimizer": optimizer, "width": width, "base": base, "rates": rates, "losses": losses, "best": best})
            shown = " ".join(f"{loss:.3f}{'*' if i == best else ' '}" for i, loss in enumerate(losses))
            print(f"{optimizer:6} width {width:4} {'base ' + str(base) if base else 'plain':8} {shown}", flush=True)
    print("rates: " + "; ".join(f"{name} {centre:g} in the middle, a factor of 2 apart" for name, centre in CENTRE.items()))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
