"""What does a monitor cost the daemon? Its latency without one and with one, in alternating blocks of one run.

    python tools/bench_monitor.py [--rates 50 1000] [--channels 256] [--seconds 20] [--blocks 4] [--browser]
                                  [--daemon OPTIONS]

The daemon publishes `factors` and the rates of all channels. With the monitor there is a page as well that takes
every frame: a program that only receives, or, with `--browser`, Chromium, which draws on the same cores. `--daemon`
has further options of `rtdsae serve`, like `--daemon "--priority 50"`. Stages and ratios are those of
`bench_latency.py`; the monitor's share of a core is that while bins come. The last line is JSON. Ctrl-C and SIGTERM end
every process.
"""

import argparse
import contextlib
import json
import re
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from bench_latency import (
    QUANTILES,
    SAID,
    STAGES,
    TOY_ANCHOR,
    WARM_UP_S,
    last_of,
    load,
    quantiles,
    ratios,
    receive,
    resident_mb,
    running,
    stages,
    subscribed,
)
from toy_bundle import Toy

from rtdsae.signals import caught, interrupt

ALONE, WATCHED = "alone", "monitor"
PAGE = """
import sys
from websockets.sync.client import connect
address = sys.argv[1]
with connect(address.replace("http", "ws") + "/feed", origin=address, proxy=None) as page:
    for frame in page:
        pass
"""
BROWSER = """
import sys
from playwright.sync_api import sync_playwright
with sync_playwright() as playwright:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    browser = playwright.chromium.launch(executable_path=sys.argv[2], args=options)
    browser.new_page().goto(sys.argv[1])
    sys.stdin.read()
"""


@dataclass
class Block:
    """What the daemon did in a block, and what the monitor took."""

    stages: np.ndarray  # (bins, STAGES) µs
    lost: int
    cpu: float  # cores, of the monitor where there is one
    memory_mb: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=int, nargs="+", default=[50, 1000])
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--browser", action="store_true")
    parser.add_argument("--daemon", metavar="OPTIONS", default="")
    args = parser.parse_args()
    if min(*args.rates, args.channels, args.blocks) < 1 or not args.seconds * min(args.rates) > TOY_ANCHOR:
        parser.error(f"--rates, --channels and --blocks must be 1 or more, --seconds more than {TOY_ANCHOR} bins")
    args.chromium = shutil.which("chromium")
    if args.browser and not args.chromium:
        parser.error("--browser needs Chromium: there is no chromium on the PATH")
    result = {}
    with caught(interrupt), tempfile.TemporaryDirectory() as name:
        for rate in args.rates:
            toy = Toy(n_channels=args.channels, n_hidden=128, n_anchor=TOY_ANCHOR, bin_width_s=1 / rate)
            bundle = toy.write(Path(name) / f"toy-{rate}")
            blocks: dict[str, list[Block]] = {ALONE: [], WATCHED: []}
            for i in range(args.blocks):
                for subject in (ALONE, WATCHED) if i % 2 else (WATCHED, ALONE):
                    blocks[subject].append(measure(subject == WATCHED, args, rate, bundle, Path(name)))
            title = f"{rate} Hz, {args.channels} channels"
            result[title] = report(title, blocks)
    print(json.dumps(result))


def measure(watched: bool, args: argparse.Namespace, rate: int, bundle: Path, folder: Path) -> Block:
    with load(bundle, args.seconds, "counts", folder) as (source_id, pushed), contextlib.ExitStack() as open_:
        endpoint = f"ipc://{folder}/{source_id[-8:]}"
        subscriber = open_.enter_context(subscribed(endpoint, "daemon"))
        monitor = page = None
        if watched:
            monitor = open_.enter_context(running(["-m", "rtdsae", "monitor", "--port", 0, "--sub", endpoint], folder))
            found = re.search(rb"http://[\d.:]+", monitor.stdout.readline())
            if not found:
                sys.exit(f"the monitor did not start:\n{last_of(folder / SAID)}")
            address = found[0].decode()
            program = ["-c", BROWSER, address, args.chromium] if args.browser else ["-c", PAGE, address]
            page = open_.enter_context(running(program, folder))
        serve = ["-m", "rtdsae", "serve", bundle, "--stream", f"source_id={source_id}", "--pub", endpoint]
        subject = open_.enter_context(
            running([*serve, "--publish", "factors,rates", *shlex.split(args.daemon)], folder)
        )
        seconds = args.seconds + WARM_UP_S
        frames = receive(subscriber, "daemon", subject, seconds, rate, folder / SAID, weighed=monitor)
        if page and page.poll() is not None:
            sys.exit(f"the page was not open all the time:\n{last_of(folder / SAID)}")
        memory = resident_mb(monitor.pid) if monitor else 0.0
        return Block(*stages(frames, *pushed(), rate), frames.cpu, memory)


def report(title: str, blocks: dict[str, list[Block]]) -> dict:
    print(f"\n{title}\n{'':24}" + "".join(f"{q:>8}" for q in QUANTILES) + "     p99 / alone")
    result: dict = {}
    for i, stage in enumerate(STAGES):
        parts = {name: [block.stages[:, i] for block in found] for name, found in blocks.items()}
        for name, found in parts.items():
            figures = dict(zip(QUANTILES, quantiles(found).round(1).tolist(), strict=True))
            result.setdefault(name, {})[stage] = figures
            line = f"{stage:13}{name:11}" + "".join(f"{v:8.0f}" for v in figures.values())
            if name == WATCHED:
                ratio = result[name][f"{stage} / alone"] = ratios(found, parts[ALONE])["p99"]
                line += "  {:.2f} ({:.2f}-{:.2f})".format(*ratio)
            print(line)
    for name, found in blocks.items():
        result[name]["lost"] = sum(block.lost for block in found)
    watched = blocks[WATCHED]
    result["monitor_cpu_percent"] = round(100 * float(np.mean([block.cpu for block in watched])), 1)
    result["monitor_memory_mb"] = round(max(block.memory_mb for block in watched), 1)
    print(
        f"lost: {result[ALONE]['lost']} and {result[WATCHED]['lost']}; the monitor takes "
        f"{result['monitor_cpu_percent']} % of a core and {result['monitor_memory_mb']} MB",
        flush=True,
    )
    return result


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
