"""The kinds of stream: what a stream's samples are, told from its nominal rate."""

import math
from typing import Literal

from rtdsae.bins.grid import width_ns
from rtdsae.errors import BinError

__all__ = ["Kind", "input_kind"]

Kind = Literal["counts", "samples", "events"]


def input_kind(nominal_rate_hz: float, bin_width_s: float, declared: Kind | None = None) -> tuple[Kind, int]:
    """What a stream's samples are, from its nominal rate: the kind, and how many samples make a bin (0 for events).

    Args:
        nominal_rate_hz: 0 for an irregular stream.
        bin_width_s: of the model.
        declared: the kind where the user says so; the rate must still be possible for it.

    Raises:
        BinError: no whole number of such samples makes such a bin.

    Examples:
        >>> input_kind(50, 0.02), input_kind(1000, 0.02), input_kind(0, 0.02)
        (('counts', 1), ('samples', 20), ('events', 0))
    """
    width_ns(bin_width_s)
    if not (math.isfinite(nominal_rate_hz) and nominal_rate_hz >= 0):
        raise BinError(f"a nominal rate of {nominal_rate_hz} Hz is impossible: the source must state its rate, or 0")
    if declared == "events" or (declared is None and nominal_rate_hz == 0):
        return "events", 0
    if declared == "counts" and nominal_rate_hz == 0:
        return "counts", 1
    ratio = nominal_rate_hz * bin_width_s
    k = round(ratio)
    if k < 1 or abs(ratio - k) > 1e-3 or (declared == "counts" and k != 1):
        raise BinError(
            f"samples at {nominal_rate_hz:g} Hz do not make {declared or 'whole'} bins of {bin_width_s:g} s: "
            f"expected {1 / bin_width_s:g} Hz (counts), a whole multiple of it (samples) or 0 Hz (events)"
        )
    return declared or ("counts" if k == 1 else "samples"), k
