"""The floor: the least a Python program can do between LSL and ZeroMQ. No checks, no gaps, no clock but this machine's.

    python tools/bench_floor.py STEP.onnx SOURCE_ID ENDPOINT BIN_WIDTH_S

What a sample is, it takes from the stream's rate, as the daemon does: a bin, a part of one, or (rate 0) a spike, which
belongs to the bin of its stamp; a bin of spikes closes 2 ms after its end, the daemon's own allowance for late ones.

A frame is f64 stamp, f64 t_in, f64 t_out (LSL seconds), then the step's factors in float32.
"""

import itertools
import struct
import sys
from collections.abc import Iterator

import numpy as np
import onnxruntime
import pylsl
import zmq

LATENESS_S = 0.002
MAX_SPIKES = 65536  # of a bin


def main(path: str, source_id: str, endpoint: str, bin_width_s: float) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {node.name: np.zeros(node.shape, np.float32) for node in session.get_inputs()}
    feed["observed"][:] = 1.0

    publisher = zmq.Context().socket(zmq.PUB)
    publisher.setsockopt(zmq.LINGER, 0)
    publisher.bind(endpoint)

    (info,) = pylsl.resolve_byprop("source_id", source_id, timeout=30)
    for stamp, t_in, counts in bins(info, bin_width_s, feed["x"].shape[1]):
        feed["x"][:] = counts
        feed["state"], factors = session.run(["state_out", "factors"], feed)
        t_out = pylsl.local_clock()
        publisher.send(struct.pack("<ddd", stamp, t_in, t_out) + factors.tobytes())


def bins(info: pylsl.StreamInfo, bin_width_s: float, n_channels: int) -> Iterator[tuple[float, float, np.ndarray]]:
    """Each bin's stamp, when it was in hand, and its counts."""
    n_samples = round(info.nominal_srate() * bin_width_s)
    if n_samples == 0:
        return of_spikes(info, bin_width_s, n_channels)
    return of_samples(info, n_samples) if n_samples > 1 else of_counts(info)


def of_counts(info: pylsl.StreamInfo) -> Iterator[tuple[float, float, np.ndarray]]:
    inlet = pylsl.StreamInlet(info, max_buflen=10, max_chunklen=1)
    chunk = np.zeros((64, info.channel_count()), np.float32)
    while True:
        _, stamps = inlet.pull_chunk(timeout=1.0, max_samples=64, min_samples=1, dest_obj=chunk)
        t_in = pylsl.local_clock()
        for i, stamp in enumerate(stamps):
            yield stamp, t_in, chunk[i]


def of_samples(info: pylsl.StreamInfo, n_samples: int) -> Iterator[tuple[float, float, np.ndarray]]:
    inlet = pylsl.StreamInlet(info, max_buflen=10)
    chunk = np.zeros((n_samples, info.channel_count()), np.float32)
    while True:
        _, stamps = inlet.pull_chunk(timeout=10.0, max_samples=n_samples, dest_obj=chunk)
        t_in = pylsl.local_clock()
        if len(stamps) == n_samples:
            yield stamps[-1], t_in, chunk.sum(axis=0)


def of_spikes(info: pylsl.StreamInfo, bin_width_s: float, n_channels: int) -> Iterator[tuple[float, float, np.ndarray]]:
    inlet = pylsl.StreamInlet(info, max_buflen=1000)
    chunk = np.zeros((MAX_SPIKES, 1), np.float32)
    while not (first := inlet.pull_chunk(timeout=10.0, max_samples=1, dest_obj=chunk)[1]):
        pass
    channels, times = chunk[:1, 0].astype(int), np.array(first)
    for n in itertools.count(1):
        end = first[0] + n * bin_width_s
        left = max(0.0, end + LATENESS_S - pylsl.local_clock())
        _, stamps = inlet.pull_chunk(timeout=left, max_samples=MAX_SPIKES, dest_obj=chunk)
        t_in = pylsl.local_clock()
        channels = np.concatenate([channels, chunk[: len(stamps), 0].astype(int)])
        times = np.concatenate([times, stamps])
        now = times < end
        yield end, t_in, np.bincount(channels[now], minlength=n_channels)
        channels, times = channels[~now], times[~now]


if __name__ == "__main__":
    main(*sys.argv[1:4], float(sys.argv[4]))
