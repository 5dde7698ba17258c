"""The monitor's binary frames as docs/monitor.md describes them, read in Python."""

import json
import math
import struct

import numpy as np


def read_frame(frame):
    """A frame's JSON, and its arrays by name."""
    (length,) = struct.unpack_from("<I", frame)
    head, at, blocks = json.loads(frame[4 : 4 + length]), 4 + length, {}
    for name, kind, shape in head["blocks"]:
        dtype = np.dtype(f"<{kind}")
        blocks[name] = np.frombuffer(frame, dtype, math.prod(shape), at).reshape(shape)
        at += blocks[name].nbytes
    assert at == len(frame)
    return head, blocks
