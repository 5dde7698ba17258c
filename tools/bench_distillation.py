"""What a causal model gains from an acausal teacher, beside the ideal observer: R² to true rates and co-bps.

    python tools/bench_distillation.py [--sets lorenz chaotic_rnn] [--teacher KEY=VALUE ...] [--student KEY=VALUE ...]

The teacher is the set's config with `model.causal: false`; the student is causal and has it as `data.teacher`, with
little else that holds over-fitting down (STUDENT). It is selected by the held-out neurons' spikes of the validation
part, and scored on the test part, streamed; data and scores are `bench_quality.py`'s. The last line is JSON.
"""

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import bench_quality
import numpy as np
import torch

from rtdsae.evaluate.metrics import r2
from rtdsae.train.behaviour import split_segments
from rtdsae.train.fit import Progress, train
from rtdsae.train.latents import segment_outputs
from rtdsae.train.teacher import expected_counts
from rtdsae.train.windows import SessionWindows, Tensors

STUDENT = ["objective.coordinated_dropout=0", "model.dropout=0.05"]
STUDENTS = {  # further settings: the Lorenz config's strict ones undone, and room for a filter
    "lorenz": [
        *("objective.l2_gen=0.1", "objective.l2_con=0.1", "fit.weight_decay=0.001"),
        *("model.gen_dim=200", "model.con_dim=128", "model.ci_enc_dim=128"),
    ],
    "chaotic_rnn": [],
}


def main() -> None:
    """Teacher and student of each set, and the observer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(STUDENTS), default=list(STUDENTS))
    parser.add_argument("--teacher", action="append", default=[], metavar="KEY=VALUE", help="of the teacher's config")
    parser.add_argument("--student", action="append", default=[], metavar="KEY=VALUE", help="of the student's config")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {name: distilled(name, args.teacher, args.student) for name in args.sets}
    print(json.dumps({"teacher": args.teacher, "student": args.student, "sets": found}))


def distilled(name: str, teachers: list[str], students: list[str]) -> dict[str, Any]:
    """Scores of the student and the observer, the teacher's on the training trials, and CPU seconds."""

    def quiet(_: Progress) -> None:
        """Tells nothing."""

    with tempfile.TemporaryDirectory() as folder:
        path, begun = Path(folder) / "teacher", time.process_time()
        data, config = bench_quality.data_of(name, ["model.causal=false", *teachers])
        teacher = train(path, config, [data], quiet)
        taught = time.process_time()
        data, config = bench_quality.data_of(name, [*STUDENT, *STUDENTS[name], f"data.teacher={path}", *students])
        student = train(Path(folder) / "student", config, [data], quiet)
        ended = time.process_time()
        s, r = config.window.anchor_bins, config.window.horizon_bins
        family = student.model()

        def outputs(split: str) -> dict[str, np.ndarray]:
            return segment_outputs(family, Tensors(data), split_segments(data, split, s + r))

        session = SessionWindows(Tensors(data), s + r, r, [])
        bins = np.concatenate([np.arange(a, b) for a, b in session.train.segments])
        expected = expected_counts(teacher.model(), session, 256).float().numpy()
        assert data.true_rates is not None
        result = {
            "teacher_r2_on_training_trials": float(r2(data.true_rates[bins], expected[bins] / data.bin_width_s).mean()),
            "best_epochs": [teacher.info["best_epoch"], student.info["best_epoch"]],
            "student": bench_quality.scores(data, config, outputs),
            "oracle": bench_quality.scores(
                data, config, lambda split: bench_quality.oracle_outputs(data, config, split)
            ),
            "seconds": {"teacher": round(taught - begun), "student": round(ended - taught)},
        }
    print(name, json.dumps(result), flush=True)
    return result


if __name__ == "__main__":
    main()
