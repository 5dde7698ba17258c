"""What a causal model gains from an acausal teacher, beside the ideal observer: R² to true rates and co-bps.

    python tools/bench_distillation.py [--sets lorenz chaotic_rnn] [--epochs 60] [--set KEY=VALUE ...]

The teacher is the set's config with `model.causal: false`, trained on the same training trials for as many epochs. The
student is causal and is fed no recorded spike in training: at every step its inputs are drawn anew, Poisson of the
teacher's rates of the training trials, and its targets are these rates. So there is nothing to learn by heart but the
rates themselves, and what else holds over-fitting down is switched off (STUDENT). It is selected by the held-out
neurons' spikes of the validation part, and scored on the test part, streamed; data and scores are `bench_quality.py`'s.

An experiment, and not a way to train that rtdsae has: it puts its own tensors into the training loop. The last line is
JSON.
"""

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import bench_quality
import numpy as np
import torch

from rtdsae.evaluate.metrics import r2
from rtdsae.model.family import Family
from rtdsae.recordings import Recording
from rtdsae.train import fit
from rtdsae.train.behaviour import split_segments
from rtdsae.train.config import TrainConfig
from rtdsae.train.latents import modelled_bins, segment_outputs
from rtdsae.train.windows import Batch, Tensors

STUDENT = ["objective.coordinated_dropout=0", "model.dropout=0.05"]
STUDENTS = {  # further settings: the Lorenz config's strict ones undone, and room for a filter
    "lorenz": [
        *("objective.l2_gen=0.1", "objective.l2_con=0.1", "fit.weight_decay=0.001"),
        *("model.gen_dim=200", "model.con_dim=128", "model.ci_enc_dim=128"),
    ],
    "chaotic_rnn": [],
}


class Taught(Tensors):
    """A recording whose training windows are the teacher's: inputs drawn from its rates, and these as targets.

    Args:
        recording: the true one, which the other splits are of.
        expected: the teacher's expected counts, (bins, n_neurons).
    """

    def __init__(self, recording: Recording, expected: np.ndarray) -> None:
        super().__init__(recording)
        train = np.zeros(recording.n_bins, bool)
        for a, b in recording.segments[np.asarray(recording.splits) == "train"]:
            train[a:b] = True
        self.taught, self.expected = torch.from_numpy(train), torch.from_numpy(expected)

    def windows_at(self, first: torch.Tensor, bins: int, device: torch.device | str = "cpu") -> Batch:
        """As of any recording; a batch is of one split."""
        if not self.taught[first].all():
            return super().windows_at(first, bins, device)
        expected = self.expected[first[:, None] + torch.arange(bins)]
        return Batch(expected, torch.poisson(expected[..., self.heldin]), None, None)


def main() -> None:
    """Teacher and student of each set, and the observer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(STUDENTS), default=list(STUDENTS))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the student's config")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {name: distilled(name, args.epochs, args.set) for name in args.sets}
    print(json.dumps({"epochs": args.epochs, "sets": found}))


def distilled(name: str, epochs: int, changes: list[str]) -> dict[str, Any]:
    """Scores of the student and the observer, the teacher's on the training trials, and CPU seconds."""
    lasting = f"fit.epochs={epochs}"
    data, config = bench_quality.data_of(name, ["model.causal=false", lasting])
    begun = time.process_time()
    expected = expected_counts(trained(data, config, Tensors(data)), data)
    taught = time.process_time()
    data, config = bench_quality.data_of(name, [*STUDENT, *STUDENTS[name], lasting, *changes])
    family = trained(data, config, Taught(data, expected))
    ended = time.process_time()
    s, r = config.window.anchor_bins, config.window.horizon_bins

    def outputs(split: str) -> dict[str, np.ndarray]:
        return segment_outputs(family, Tensors(data), split_segments(data, split, s + r))

    assert data.true_rates is not None
    bins = modelled_bins(split_segments(data, "train", s + r), s)
    result = {
        "teacher_r2_on_training_trials": float(r2(data.true_rates[bins], expected[bins] / data.bin_width_s).mean()),
        "student": bench_quality.scores(data, config, outputs),
        "oracle": bench_quality.scores(data, config, lambda split: bench_quality.oracle_outputs(data, config, split)),
        "seconds": {"teacher": round(taught - begun), "student": round(ended - taught)},
    }
    print(name, json.dumps(result), flush=True)
    return result


def trained(data: Recording, config: TrainConfig, tensors: Tensors) -> Family:
    """The best model of a run of its own."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(fit, "Tensors", return_value=tensors):
        run = fit.train(Path(folder) / "run", config, [data], lambda _: None)
        return run.restore(run.load_checkpoint("best.pt")["model"]).use(0)


@torch.no_grad()
def expected_counts(teacher: Family, data: Recording) -> np.ndarray:
    """The acausal teacher's expected counts of every bin, (bins, n_neurons): each trial is one window."""
    found = np.zeros((data.n_bins, data.n_channels), np.float32)
    bins, tensors = int(data.segments[0, 1] - data.segments[0, 0]), Tensors(data)
    for some in torch.from_numpy(data.segments[:, 0].copy()).split(256):
        x = teacher.readin.normalise(tensors.windows_at(some, bins).inputs)
        rates = teacher(x, torch.ones_like(x[..., :1]), None, False).outputs.rates
        found[(some[:, None] + torch.arange(bins)).numpy()] = rates.numpy() * data.bin_width_s
    return found


if __name__ == "__main__":
    main()
