"""The progress line says all it should, and fits a terminal of 80 columns."""

from __future__ import annotations

from zenspeed.display import progress_line

STATUS = {
    "step": 1234, "steps": 9999, "progress": 0.123, "loss": 3.14159, "validation_loss": 3.2, "lr": 3e-4,
    "tokens_per_second": 43210.0, "mfu": 0.67, "memory_bytes": 2**31, "seconds_left": 3725.0,
}  # fmt: skip


def test_line() -> None:
    assert progress_line(STATUS) == (
        "step 1234/9999 ·  12 % · loss 3.1416 · val 3.2000 · lr 3.00e-04 · 43,210 tok/s · MFU 67 % · 2.00 GiB · 1:02:05 left"
    )
    assert "val" not in progress_line(STATUS | {"validation_loss": None})


def test_compact_line_fits_80_columns() -> None:
    line = progress_line(STATUS, compact=True)
    assert len(line) <= 80 and all(
        part in line for part in ("loss 3.142", "val 3.200", "43k tok/s", "MFU 67%", "2.0G", "1:02:05")
    )
