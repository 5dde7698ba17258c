"""The latents of a recording's segments: by streaming for a causal model, by overlapping windows for the reference."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rtdsae.model.family import Dims, Family, Outputs
from rtdsae.model.stream import go_on
from rtdsae.recordings import mapped
from rtdsae.serve.decoder import triangles
from rtdsae.train.windows import Tensors

__all__ = ["modelled_bins", "segment_outputs"]

BATCH = 256  # stretches at a time
ENTRIES = 1 << 24  # of counts that are floats at a time


def segment_outputs(
    family: Family, tensors: Tensors, segments: np.ndarray, names: Collection[str] = Outputs._fields
) -> dict[str, np.ndarray]:
    """Outputs of every segment's bins after its first S, by posterior means, as the daemon gives them from its start.

    Args:
        family: the model, run in its `dims.lanes`; where it is acausal, each bin comes from a window of S + R bins
            around it.
        tensors: the recording's bins.
        segments: (n, 2) first and one-past-last bins; each longer than S (S + R for the acausal reference).
        names: the outputs that are wanted, of those that the model has.

    Returns:
        By output name, (bins, size) float32, in the order of `modelled_bins`; of a causal model, on disk where large.
    """
    if family.causal:
        return streamed(family, tensors, stretches(segments, family.dims), names)
    parts = [smoothed(family, tensors, a, b, names) for a, b in segments.tolist()]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def modelled_bins(segments: np.ndarray, anchor_bins: int) -> np.ndarray:
    """The bins of a recording that a model gives outputs for: each segment's after its first S."""
    return np.concatenate([np.arange(a + anchor_bins, b) for a, b in segments])


class Stretch(NamedTuple):
    """What one lane runs through from one anchor.

    Attributes:
        begin: the anchor's first bin.
        row: where the first answer goes.
        weights: what each answer counts in the mean over the lanes.
    """

    begin: int
    row: int
    weights: np.ndarray


def stretches(segments: np.ndarray, dims: Dims) -> list[Stretch]:
    """The stretches of segments that are streamed in lanes; the answers of a segment follow those of the one before.

    A segment begins with one anchor, for all lanes; then each lane is anchored in turn, as in `serve.decoder`.
    """
    s, stride = dims.anchor_bins, dims.horizon_bins // dims.lanes
    result, row = [], 0
    for a, b in segments.tolist():
        n = b - a - s
        first = np.ones(n, np.float32)
        if dims.lanes > 1:
            fading = triangles(dims.lanes, stride)[1:, 0]  # a lane's, from the first bin after its anchor to its next
            for k in range(stride, n, stride):
                weights = fading[: n - k]
                result.append(Stretch(a + k, row + k, weights))
                first[k : k + len(weights)] -= weights
            first = first[: len(fading)]
        result.append(Stretch(a, row, first))
        row += n
    return result


def streamed(
    family: Family, tensors: Tensors, runs: list[Stretch], names: Collection[str] = Outputs._fields
) -> dict[str, np.ndarray]:
    """The outputs of all stretches, many side by side; what is padded after a stretch's end counts for nothing."""
    family.eval()
    n_rows = max(run.row + len(run.weights) for run in runs)
    total: dict[str, Tensor] = {}
    runs = sorted(runs, key=lambda run: -len(run.weights))  # like beside like: little is padded
    for some in (runs[i : i + BATCH] for i in range(0, len(runs), BATCH)):
        for at, weights, outputs in side_by_side(family, tensors, some):
            for name in names:
                if (value := getattr(outputs, name)) is not None:
                    if name not in total:
                        zeros = mapped.zeros((n_rows, value.shape[-1]), np.float32, f"what is streamed as {name}")
                        total[name] = torch.from_numpy(zeros)
                    total[name].index_add_(0, at, weights * value)
    return {name: value.numpy() for name, value in total.items()}


@torch.no_grad()
def side_by_side(family: Family, tensors: Tensors, runs: list[Stretch]) -> Iterator[tuple[Tensor, Tensor, Outputs]]:
    """Rows, weights (n, 1) and outputs (n, size) of stretches, the longest first, a piece of all of them at a time.

    A stretch may be hours long: its counts and rates are floats for the time of a piece alone.
    """
    device, s = family.readin.mean.device, family.dims.anchor_bins
    begins, rows = (np.array([[getattr(run, name)] for run in runs]) for name in ("begin", "row"))
    lengths = np.array([[len(run.weights)] for run in runs])

    def taken(bins: np.ndarray) -> tuple[Tensor, Tensor | None]:
        x = tensors.counts[torch.from_numpy(bins)][..., tensors.heldin].to(device).float()
        return x, None if tensors.u is None else tensors.u[torch.from_numpy(bins)].to(device)

    state = family.anchor(taken(begins + np.arange(s))[0])
    piece = max(1, ENTRIES // (len(runs) * tensors.counts.shape[1]))
    for first in range(0, len(runs[0].weights), piece):
        ages = np.arange(first, min(first + piece, len(runs[0].weights)))
        x, u = taken(begins + s + np.minimum(ages, lengths - 1))
        state, outputs = go_on(family, state, x, torch.ones_like(x[..., :1]), u)
        there = torch.from_numpy(ages < lengths)
        weights = torch.from_numpy(np.concatenate([run.weights[first : first + piece] for run in runs]))
        found = (None if value is None else value.cpu()[there] for value in outputs)
        yield torch.from_numpy(rows + ages)[there], weights[:, None], Outputs(*found)  # type: ignore[arg-type]


@torch.no_grad()
def smoothed(
    family: Family, tensors: Tensors, a: int, b: int, names: Collection[str] = Outputs._fields
) -> dict[str, np.ndarray]:
    """Bins a to b by windows of S + R bins every R bins, of which the bins after the first S are kept."""
    family.eval()
    s, bins = family.dims.anchor_bins, family.dims.anchor_bins + family.dims.horizon_bins
    firsts = torch.tensor(sorted({*range(a, b - bins + 1, bins - s), b - bins}))
    whole: dict[str, np.ndarray] = {}
    for some in firsts.split(BATCH):
        batch = tensors.windows_at(some, bins, family.readin.mean.device)
        x = family.readin.normalise(batch.inputs)
        outputs = family(x, torch.ones_like(x[..., :1]), batch.u, False).outputs
        where = (some[:, None] - a - s + torch.arange(s, bins)).numpy()
        for name in names:
            if (value := getattr(outputs, name)) is not None:
                whole.setdefault(name, np.empty((b - a - s, value.shape[-1]), np.float32))
                whole[name][where] = value[:, s:].cpu().numpy()
    return whole
