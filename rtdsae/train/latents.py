"""The latents of a recording's segments: by streaming for a causal model, by overlapping windows for the reference."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rtdsae.model.family import Dims, Family
from rtdsae.model.stream import stream
from rtdsae.serve.decoder import triangles
from rtdsae.train.windows import Tensors

__all__ = ["modelled_bins", "segment_outputs"]

BATCH = 256  # stretches at a time


def segment_outputs(family: Family, tensors: Tensors, segments: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs of every segment's bins after its first S, by posterior means, as the daemon gives them from its start.

    Args:
        family: the model, run in its `dims.lanes`; where it is acausal, each bin comes from a window of S + R bins
            around it.
        tensors: the recording's bins.
        segments: (n, 2) first and one-past-last bins; each longer than S (S + R for the acausal reference).

    Returns:
        By output name, (bins, size) float32, in the order of `modelled_bins`.
    """
    if family.causal:
        return streamed(family, tensors, stretches(segments, family.dims))
    parts = [smoothed(family, tensors, a, b) for a, b in segments.tolist()]
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
    """All of them, for segments that are streamed in lanes; the answers of a segment follow those of the one before.

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


def streamed(family: Family, tensors: Tensors, runs: list[Stretch]) -> dict[str, np.ndarray]:
    """The outputs of all stretches, many side by side; what is padded after a stretch's end counts for nothing."""
    device, s = family.readin.mean.device, family.dims.anchor_bins
    n_rows = max(run.row + len(run.weights) for run in runs)
    total: dict[str, Tensor] = {}
    runs = sorted(runs, key=lambda run: -len(run.weights))  # like beside like: little is padded
    for some in (runs[i : i + BATCH] for i in range(0, len(runs), BATCH)):
        ages = np.arange(len(some[0].weights))
        lengths = np.array([[len(run.weights)] for run in some])
        there = torch.from_numpy(ages < lengths)
        begins, rows = (np.array([[getattr(run, name)] for run in some]) for name in ("begin", "row"))
        bins = torch.from_numpy(begins + np.minimum(np.arange(s + len(ages)), s + lengths - 1))
        x = tensors.counts[bins][..., tensors.heldin].to(device).float()
        u = None if tensors.u is None else tensors.u[bins].to(device)
        at = torch.from_numpy(rows + ages)[there]
        weights = torch.from_numpy(np.concatenate([run.weights for run in some]))[:, None]
        for name, value in stream(family, x, u=u)._asdict().items():
            if value is not None:
                total.setdefault(name, torch.zeros(n_rows, value.shape[-1]))
                total[name].index_add_(0, at, weights * value.cpu()[there])
    return {name: value.numpy() for name, value in total.items()}


@torch.no_grad()
def smoothed(family: Family, tensors: Tensors, a: int, b: int) -> dict[str, np.ndarray]:
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
        for name, value in outputs._asdict().items():
            if value is not None:
                whole.setdefault(name, np.empty((b - a - s, value.shape[-1]), np.float32))
                whole[name][where] = value[:, s:].cpu().numpy()
    return whole
