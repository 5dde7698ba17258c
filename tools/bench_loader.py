"""Is a recording that is larger than memory read fast enough to train on?

    python tools/bench_loader.py [--hours 4] [--channels 1000] [--bin-width 0.01] [--batches 30] [--memory GB]

Generates such a recording, with two columns of behaviour, reads it as `rtdsae train` does, takes batches of 64 windows
of 100 bins at random places, each followed by a training step of LFADS at its default sizes, and fits the behaviour to
the factors as a training does at its end: milliseconds and seconds, and the process's own memory at its most, which a
thread looks at (not the mapped files', which the system takes back when it needs room). `--memory` is a limit on that.

The file just written lies in memory still, and so would what is read of it. Before it is read it is put out of memory,
and so are the mapped arrays before each batch: `drawn_mb` is what the batches then read from the disk, and a draw is as
slow as it is where the recording never fits. A batch is drawn between two steps, as in training. To hold the mapped
files to a limit too, where the system has cgroups of the second version:

    systemd-run --user --scope -p MemoryMax=2G -p MemorySwapMax=0 python tools/bench_loader.py

The last line is JSON.
"""

import argparse
import contextlib
import json
import mmap
import os
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import torch

from rtdsae.model.families import make_family
from rtdsae.model.families.lfads import LFADSConfig
from rtdsae.model.family import Family
from rtdsae.recordings import load
from rtdsae.train.behaviour import fit_behaviour
from rtdsae.train.config import Data, Fit, TrainConfig, Window
from rtdsae.train.fit import keep_memory
from rtdsae.train.objective import Loss, Schedule
from rtdsae.train.processes import make_fabric
from rtdsae.train.sessions import dims_of, prepare
from rtdsae.train.windows import draw_batches, session_windows

BLOCK = 50_000  # bins that are drawn; the recording is made of them
RATE = 0.1  # spikes a bin
MADV_PAGEOUT = getattr(mmap, "MADV_PAGEOUT", 21)  # of Linux 5.4 on; Python knows it later
LOOK_S = 0.02  # between two looks at the memory


def main() -> None:
    args = arguments()
    if args.memory:
        limit = round(args.memory * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="rtdsae-loader-") as folder:
        path = Path(folder) / "long.h5"
        data_bytes = generate(path, args)
        keep_memory()  # as `train` does, but not what generating took, in which what reading takes would not show
        put_out(path)
        found = {"data_gb": data_bytes / 1e9, "file_gb": path.stat().st_size / 1e9, "before_mb": own_memory()}
        config = TrainConfig(
            model=LFADSConfig(), data=Data(path=str(path)), window=Window(horizon_bins=90), fit=Fit(accelerator="cpu")
        )
        with peak_memory(found, "load_peak_mb"):
            begun = time.perf_counter()
            sessions = session_windows([prepare(load(path), config)], config)
            found |= {"load_s": time.perf_counter() - begun, "loaded_mb": own_memory()}
        family = make_family(config.model, dims_of([sessions[0].tensors.recording], config))
        with peak_memory(found, "steps_peak_mb"):
            found |= steps(family, sessions, config, args.batches)
        with peak_memory(found, "behaviour_peak_mb"):
            begun = time.perf_counter()
            fit_behaviour(family, [sessions[0].tensors], sessions[0].train.bins)
            found["behaviour_s"] = time.perf_counter() - begun
    print(
        f"{args.hours:g} h of {args.channels} channels in {1000 * args.bin_width:g} ms bins: {found['data_gb']:.2f} GB"
    )
    print("\n".join(f"  {name:12} {value:10.2f}" for name, value in found.items()))
    print(json.dumps(found))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=4.0)
    parser.add_argument("--channels", type=int, default=1000)
    parser.add_argument("--bin-width", type=float, default=0.01, help="seconds")
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--memory", type=float, metavar="GB", help="what the process may have of its own")
    args = parser.parse_args()
    if (
        args.batches < 1
        or args.channels < 1
        or not args.bin_width > 0
        or not args.hours * 3600 >= 2000 * args.bin_width
    ):
        parser.error("--batches and --channels must be 1 or more, --bin-width above 0, --hours 2000 bins or more")
    return args


def generate(path: Path, args: argparse.Namespace) -> int:
    """Write the recording block by block: how many bytes its counts are."""
    n_bins = round(args.hours * 3600 / args.bin_width)
    block = np.random.default_rng(0).poisson(RATE, (min(BLOCK, n_bins), args.channels)).astype(np.uint8)
    with h5py.File(path, "w") as file:
        file.attrs["bin_width_s"] = args.bin_width
        counts = file.create_dataset(
            "counts", (n_bins, args.channels), "u1", chunks=(1000, args.channels), compression=1
        )
        file["behaviour"] = np.sin(np.arange(n_bins)[:, None] / [90, 140])
        for first in range(0, n_bins, len(block)):
            part = block[: n_bins - first]
            counts[first : first + len(part)] = part
        return int(counts.nbytes)


def steps(family: Family, sessions: list, config: TrainConfig, batches: int) -> dict[str, float]:
    """Medians of what drawing a batch and training on it take, and the slowest drawing but for a hundredth."""
    session = sessions[0]
    family.session.fit(session.training_bins(), session.training_bins()[:, session.tensors.heldin])
    fabric = make_fabric(config.fit)
    loss, optimizer = fabric.setup(Loss(family, config.objective), torch.optim.AdamW(family.parameters()))
    draws, trains, read = [], [], 0
    for windows in draw_batches(sessions, config.fit, 0)[:batches]:
        put_out(session.tensors.recording.counts)
        before, begun = read_from_disk(), time.perf_counter()
        part = session.part(windows[:, 1].contiguous())
        drawn = time.perf_counter()
        read += read_from_disk() - before
        terms, _ = loss([part], Schedule(0, 1.0, 1))
        optimizer.zero_grad()
        fabric.backward(terms["loss"])
        optimizer.step()
        draws.append(1000 * (drawn - begun))
        trains.append(1000 * (time.perf_counter() - drawn))
    return {
        "drawn_mb": read / batches / 1e6,
        "draw_ms": float(np.median(draws)),
        "draw_p99_ms": float(np.percentile(draws, 99)),
        "train_ms": float(np.median(trains)),
    }


def put_out(what: Path | np.ndarray) -> None:
    """Put a file, or a mapped array, out of memory; it is on the disk."""
    if isinstance(what, Path):
        with what.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    elif isinstance(what.base, np.memmap):
        what.base.flush()
        what.base._mmap.madvise(MADV_PAGEOUT)


def read_from_disk() -> int:
    """Bytes that this process has caused to be read from a disk."""
    return int(of_itself("io", "read_bytes"))


def own_memory() -> float:
    """Megabytes that are of no file."""
    return int(of_itself("status", "RssAnon").split()[0]) / 1024


def of_itself(file: str, name: str) -> str:
    """A line of what the system says of this process."""
    return dict(line.split(":", 1) for line in Path("/proc/self", file).read_text().splitlines())[name]


@contextlib.contextmanager
def peak_memory(found: dict[str, float], name: str) -> Iterator[None]:
    """The most that `own_memory` is meanwhile, as far as looks at it tell; goes into `found`."""
    most, ended = own_memory(), threading.Event()

    def look() -> None:
        nonlocal most
        while not ended.wait(LOOK_S):
            most = max(most, own_memory())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        ended.set()
        looking.join()
        found[name] = max(most, own_memory())


if __name__ == "__main__":
    main()
