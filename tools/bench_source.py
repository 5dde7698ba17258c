"""The load of the latency benchmark: bins on an LSL stream, and when each was complete there.

    python tools/bench_source.py SOURCE_ID CHANNELS BINS_HZ N_BINS INPUT OUT.npz

INPUT is `counts`, where a sample is a bin; `samples=K`, of which K make one; or `events=HZ`, spikes of channels that
fire so often. What is due in the same millisecond is pushed together, as amplifiers do. A bin is complete when its last
sample is pushed; one of spikes at its end.

Begins a second after a consumer has come, and ends when its standard input does.
"""

import sys
import time

import numpy as np
import pylsl

PUSH_S = 0.001
COUNT = 0.5  # the mean of a bin

source_id, out = sys.argv[1], sys.argv[6]
n_channels, bins_hz, n_bins = int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
kind, _, value = sys.argv[5].partition("=")
rng = np.random.default_rng(0)

# The samples, over and over; all their stamps, where each push ends, and when it is due, from the start on.
if kind == "events":
    rate = pylsl.IRREGULAR_RATE
    seconds = n_bins / bins_hz
    stamps = np.sort(rng.uniform(0.0, seconds, max(1, rng.poisson(n_channels * float(value) * seconds))))
    stamps[0] = 0.0  # the first spike is where the bins begin
    samples = rng.integers(n_channels, size=(len(stamps), 1)).astype(np.float32)
    due = np.arange(1, round(seconds / PUSH_S) + 1) * PUSH_S
    ends = np.searchsorted(stamps, due)
else:
    n_samples = int(value or 1)
    rate = bins_hz * n_samples
    stamps = (np.arange(n_bins * n_samples) + 1) / rate
    samples = rng.poisson(COUNT / n_samples, (1000, n_channels)).astype(np.float32)
    at_a_time = max(1, round(rate * PUSH_S))
    ends = np.append(np.arange(at_a_time, len(stamps), at_a_time), len(stamps))
    due = stamps[ends - 1]
outlet = pylsl.StreamOutlet(pylsl.StreamInfo("bench", "Spikes", samples.shape[1], rate, pylsl.cf_float32, source_id))
print("ready", flush=True)
outlet.wait_for_consumers(60)
time.sleep(1.0)  # a consumer measures the clock offset first

start = pylsl.local_clock()
pushed, first = np.zeros(len(ends)), 0
for i, (end, at) in enumerate(zip(ends.tolist(), (start + due).tolist(), strict=True)):
    if (left := at - pylsl.local_clock()) > 0:
        time.sleep(left)
    pushed[i] = pylsl.local_clock()
    if n := end - first:
        row = first % (len(samples) - n + 1)
        outlet.push_chunk(samples[row : row + n], start + (stamps[first:end] if kind == "events" else stamps[end - 1]))
    first = end
bin_ends = start + (np.arange(n_bins) + 1) / bins_hz
complete = bin_ends if kind == "events" else pushed[np.searchsorted(ends, (np.arange(n_bins) + 1) * n_samples)]
np.savez(out, stamps=bin_ends, complete=complete)
print("pushed", flush=True)
sys.stdin.read()
