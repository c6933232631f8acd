"""Loss scales follow the published rules step by step, and training that cannot go on stops."""

from __future__ import annotations

import pytest

from zenspeed.config import InputError
from zenspeed.scaler import DynamicLossScaler, LossScaler

# Made by running DynamicLossScaler of deepspeed 0.19.8: (power of the first scale, window, hysteresis, consecutive, minimum,
# overflow of each update, scale after it as value*times, whether it then raised at the minimum).
SEQUENCES = [
    (
        16,
        4,
        2,
        False,
        1,
        "0001000000001001000000000100000010010000",
        "65536*8 131072*7 65536*5 131072*4 262144*6 524288*5 262144*5",
        False,
    ),
    (16, 4, 2, True, 1, "0101010101010101010101010101010101010101", "65536*40", False),
    (16, 4, 2, True, 1, "0001000000001001000000000100000010010000", "65536*8 131072*12 262144*4 524288*6 1048576*10", False),
    (
        16,
        4,
        1,
        False,
        1,
        "0001000000001001000000000100000010010000",
        "65536*3 32768*5 65536*4 32768*3 16384*5 32768*4 65536*1 32768*5 65536*2 32768*3 16384*5",
        False,
    ),
    (8, 3, 4, False, 1, "1111111111111111111111111111111111111111", "256*3 128*1 64*1 32*1 16*1 8*1 4*1 2*1 1*1", True),
    (8, 3, 4, False, 1, "0101010101010101010101010101010101010101", "256*7 128*2 64*2 32*2 16*2 8*2 4*2 2*2 1*2", True),
    (8, 3, 4, False, 1, "0001000000001001000000000100000010010000", "256*7 512*3 1024*9 2048*3 4096*7 8192*10 16384*1", False),
    (8, 3, 4, True, 1, "1111111111111111111111111111111111111111", "256*3 128*1 64*1 32*1 16*1 8*1 4*1 2*1 1*1", True),
    (8, 3, 4, True, 1, "0101010101010101010101010101010101010101", "256*40", False),
    (8, 3, 4, True, 1, "0001000000001001000000000100000010010000", "256*7 512*3 1024*9 2048*3 4096*7 8192*10 16384*1", False),
    (5, 2, 2, False, 8, "1111111111111111111111111111111111111111", "32*1 16*1 8*1", True),
    (5, 2, 2, False, 8, "0101010101010101010101010101010101010101", "32*3 16*2 8*2", True),
    (5, 2, 2, False, 8, "1111100000000000000000000000000000000000", "32*1 16*1 8*1", True),
    (4, 5, 1, False, 3, "1111111111111111111111111111111111111111", "8*1 4*1 3*1", True),
    (4, 5, 1, False, 3, "0000011000000000000000000000000000000000", "16*5 8*1 4*6 8*5 16*5 32*5 64*5 128*5 256*3", False),
    (4, 5, 1, False, 3, "0101010101010101010101010101010101010101", "16*1 8*2 4*2 3*2", True),
    (4, 5, 1, False, 3, "1111100000000000000000000000000000000000", "8*1 4*1 3*1", True),
    (4, 5, 1, False, 3, "0000000000001110000000000000000000000000", "16*5 32*5 64*2 32*1 16*1 8*6 16*5 32*5 64*5 128*5", False),
    (4, 5, 1, False, 3, "0001000000001001000000000100000010010000", "16*3 8*6 16*3 8*3 4*6 8*4 4*6 8*1 4*3 3*5", False),
    (0, 2, 2, False, 1, "1111111111111111111111111111111111111111", "1*1", True),
    (0, 2, 2, False, 1, "0101010101010101010101010101010101010101", "1*3", True),
    (0, 2, 2, False, 1, "1111100000000000000000000000000000000000", "1*1", True),
]


@pytest.mark.parametrize(
    ("power", "window", "hysteresis", "consecutive", "minimum", "overflows", "expected", "stops"), SEQUENCES
)
def test_sequences(
    power: int, window: int, hysteresis: int, consecutive: bool, minimum: int, overflows: str, expected: str, stops: bool
) -> None:
    scaler = DynamicLossScaler(2.0**power, window, hysteresis, consecutive, minimum)
    scales: list[float] = []
    for flag in overflows:
        try:
            scaler.update(overflow=flag == "1")
        except InputError:
            break
        scales.append(scaler.scale)
    runs = [part.split("*") for part in expected.split()]
    assert scales == [float(value) for value, times in runs for _ in range(int(times))]
    assert (len(scales) < len(overflows)) == stops


def test_state_goes_on_where_it_was() -> None:
    first = DynamicLossScaler(16.0, window=2)
    for overflow in (False, True, False):
        first.update(overflow=overflow)
    second = DynamicLossScaler(1.0, window=2)
    second.load_state_dict(first.state_dict())
    for _ in range(9):
        first.update(overflow=False)
        second.update(overflow=False)
        assert first.state_dict() == second.state_dict()


def test_a_static_scale_stops_after_its_patience() -> None:
    scaler = LossScaler(8.0, patience=3)
    for overflow in (True, True, False, True, True):
        scaler.update(overflow=overflow)
    with pytest.raises(InputError, match="3 updates in a row"):
        scaler.update(overflow=True)
