"""Other work on the computer, for the latency benchmark: a core busy half of the time, its caches used.

    python tools/bench_busy.py

Bouts and rests are of random length, 5 ms on average. It ends when its standard input does.
"""

import random
import select
import sys
import time

import numpy as np

values = np.random.default_rng(0).random(1 << 18)  # 2 MB: what others had in the caches is gone

while True:
    until = time.monotonic() + random.expovariate(1 / 0.005)
    while time.monotonic() < until:
        np.sqrt(values, out=values)
    if select.select([sys.stdin], [], [], random.expovariate(1 / 0.005))[0]:
        break
