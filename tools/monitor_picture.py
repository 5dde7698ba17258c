"""The picture of the monitor's page in the documentation: generated neurons, published live, in real Chromium.

    python tools/monitor_picture.py [OUT] [--width 1440] [--height 1000] [--seconds 12]

Nothing is decoded here: a Lorenz system's state, the rates that it would drive, and a velocity made of it are published
as a daemon would publish them, with a gap, a swap and a restart.
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from broadcast import Broadcast
from monitor_process import Monitor
from station import until

from rtdsae.wire import Array, Flags

WIDTH_S = 0.02
N_CHANNELS = 60
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
ARRAYS = (
    Array("factors", (3,)),
    Array("z", (2,)),
    Array("behaviour", (2,), "mm/s", ("vel_x", "vel_y")),
    Array("rates", (N_CHANNELS,), "spikes/s", tuple(f"unit{i:02d}" for i in range(N_CHANNELS))),
)


def lorenz(n: int) -> np.ndarray:
    """The state of a Lorenz system at each bin, about of size 1."""
    x, dt, steps = np.array([1.0, 1.0, 20.0]), 0.0025, 10
    out = np.empty((n, 3))
    for i in range(n):
        for _ in range(steps):
            x = x + dt * np.array([10 * (x[1] - x[0]), x[0] * (28 - x[2]) - x[1], x[0] * x[1] - 8 / 3 * x[2]])
        out[i] = x
    return (out - [0, 0, 24]) / 9


class Story:
    """What is published: a state, what it drives, and what happens to some bins."""

    def __init__(self, n: int) -> None:
        rng = np.random.default_rng(3)
        self.factors = lorenz(n)
        drive = self.factors @ rng.standard_normal((3, N_CHANNELS)) * 0.7
        order = np.argsort(np.argmax(drive[:500], axis=0))
        self.rates = 40 / (1 + np.exp(1.2 - drive[:, order]))
        self.z = np.convolve(rng.standard_normal(n), np.ones(8) / 8, "same")[:, None] * [1.0, -0.6]
        self.z[:, 1] += 0.2 * np.sin(np.arange(n) / 30)
        self.velocity = 120 * np.stack([np.tanh(self.factors[:, 0]), self.factors[:, 2] * 0.6], 1)

    def fill(self, seq: int, payload: dict[str, np.ndarray]) -> int:
        i = seq % len(self.factors)
        for name, values in (
            ("factors", self.factors),
            ("z", self.z),
            ("behaviour", self.velocity),
            ("rates", self.rates),
        ):
            payload[name][:] = values[i]
        flags = Flags.ANCHORED if seq % 60 == 0 else 0
        if seq % 640 in range(180, 188):
            flags |= Flags.GAP
        return flags | (Flags.SWAPPED if seq % 640 == 420 else 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=HERE.parent / "docs" / "monitor.png")
    parser.add_argument("--width", type=int, default=1440)
    parser.add_argument("--height", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=12.0)
    args = parser.parse_args()
    chromium = shutil.which("chromium")
    if not chromium:
        parser.error("there is no chromium on the PATH")
    with (
        Broadcast(ARRAYS, width_s=WIDTH_S, fill=Story(4000).fill, bundle="monday") as station,
        station.on_time(),
        Monitor("--port", 0, "--sub", station.endpoint) as monitor,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        page = browser.new_page(viewport={"width": args.width, "height": args.height})
        page.goto(monitor.address)
        page.wait_for_timeout(1e3 * args.seconds)
        until(lambda: page.evaluate("Number(document.body.dataset.seq ?? -1)") > args.seconds / WIDTH_S, "the last bin")
        page.screenshot(path=args.out, full_page=True)
        browser.close()
    print(args.out)


if __name__ == "__main__":
    main()
