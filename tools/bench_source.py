"""The load of the latency benchmark: Poisson counts on an LSL stream, and when each sample was really pushed.

    python tools/bench_source.py SOURCE_ID CHANNELS RATE_HZ N_SAMPLES OUT.npz

Begins a second after a consumer has come, and ends when its standard input does.
"""

import sys
import time

import numpy as np
import pylsl

source_id, out = sys.argv[1], sys.argv[5]
n_channels, rate, n_samples = int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])

counts = np.random.default_rng(0).poisson(0.5, (1000, n_channels)).astype(np.float32)  # over and over
outlet = pylsl.StreamOutlet(pylsl.StreamInfo("bench", "Spikes", n_channels, rate, pylsl.cf_float32, source_id))
pushed = np.zeros(n_samples)
print("ready", flush=True)
outlet.wait_for_consumers(60)
time.sleep(1.0)  # a consumer measures the clock offset first

start = pylsl.local_clock()
stamps = start + (np.arange(n_samples) + 1) / rate
for i, due in enumerate(stamps.tolist()):
    if (left := due - pylsl.local_clock()) > 0:
        time.sleep(left)
    pushed[i] = pylsl.local_clock()
    outlet.push_chunk(counts[i % 1000 : i % 1000 + 1], due)
np.savez(out, stamps=stamps, pushed=pushed)
print("pushed", flush=True)
sys.stdin.read()
