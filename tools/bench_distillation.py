"""What a causal model gains from an acausal teacher: scores as it is, taught, and of the ideal observer.

    python tools/bench_distillation.py [--sets lorenz ...] [--set KEY=VALUE ...] [--student KEY=VALUE ...]

Three trainings on the same data: the set's config as it is, the same with `model.causal: false`, and a student that has
the second as `data.teacher`, with little else that holds over-fitting down (on Lorenz, configs/lorenz_taught.yaml).
Each is selected by the held-out neurons of the validation part, and scored on the test part; the causal ones are
streamed. Data and scores are those of `bench_quality.py`; sets of real recordings are left out where they are not at
hand. The last line is JSON.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import bench_quality
import torch

from rtdsae.errors import RecordingError, RtdsaeError
from rtdsae.train.behaviour import split_segments
from rtdsae.train.fit import train
from rtdsae.train.latents import segment_outputs
from rtdsae.train.windows import Tensors


def main() -> None:
    """Every set in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["lorenz", "chaotic_rnn", "center_out", "pursuit"]
    parser.add_argument("--sets", nargs="+", choices=names, default=names)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of all three configs")
    parser.add_argument("--student", action="append", default=[], metavar="KEY=VALUE", help="of the student's alone")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {}
    for name in args.sets:
        try:
            found[name] = compared(name, args.set, args.student)
        except RecordingError as error:
            print(f"{name}: left out: {error}", flush=True)
    print(json.dumps({"set": args.set, "student": args.student, "sets": found}))


def compared(name: str, common: list[str], student: list[str]) -> dict[str, Any]:
    """The scores of the three and the observer."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        student = [*bench_quality.lessons(), *common, f"data.teacher={path / 'teacher'}", *student]
        found = {
            "as_it_is": trained(path / "plain", name, common),
            "teacher": trained(path / "teacher", name, ["model.causal=false", *common]),
            "taught": trained(path / "student", name, student, bench_quality.TAUGHT_CONFIGS.get(name, "")),
        }
    data, config = bench_quality.data_of(name, common)
    if data.generator:
        found["oracle"] = bench_quality.scores(
            data, config, lambda split: bench_quality.oracle_outputs(data, config, split)
        )
    print(name, json.dumps(found), flush=True)
    return found


def trained(path: Path, name: str, changes: list[str], config_name: str = "") -> dict[str, Any]:
    """A run's scores, its best epoch, from 0, and its CPU seconds."""
    data, config = bench_quality.data_of(name, changes, config_name)
    begun = time.process_time()
    run = train(path, config, [data], lambda _: None)
    if run.info["state"] != "finished":
        raise KeyboardInterrupt  # `train` has taken it for its own
    seconds = round(time.process_time() - begun)
    family, least = run.model(), config.window.anchor_bins + config.window.horizon_bins
    scores = bench_quality.scores(
        data, config, lambda split: segment_outputs(family, Tensors(data), split_segments(data, split, least))
    )
    return {**scores, "best_epoch": run.info["best_epoch"], "seconds": seconds}


if __name__ == "__main__":
    try:
        main()
    except RtdsaeError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
