"""The latents of a recording's segments: by streaming for a causal model, by overlapping windows for the reference."""

import numpy as np
import torch

from rtdsae.model.family import Family
from rtdsae.model.stream import stream
from rtdsae.train.windows import Tensors

__all__ = ["modelled_bins", "segment_outputs"]

BATCH = 256  # segments, or windows, at a time


def segment_outputs(family: Family, tensors: Tensors, segments: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs of every segment's bins after its first S, anchored at the segment's start, by posterior means.

    Args:
        family: the model; where it is acausal, each bin comes from a window of S + R bins around it.
        tensors: the recording's bins.
        segments: (n, 2) first and one-past-last bins; each longer than S (S + R for the acausal reference).

    Returns:
        By output name, (bins, size) float32, in the order of `modelled_bins`.
    """
    run = streamed if family.causal else smoothed
    order = np.argsort(segments[:, 0] - segments[:, 1], kind="stable")  # longest first: little is padded
    parts: list[dict[str, np.ndarray]] = [{}] * len(segments)
    for chunk in np.array_split(order, -(-len(order) // BATCH)):
        for i, part in zip(chunk, run(family, tensors, segments[chunk]), strict=True):
            parts[i] = part
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def modelled_bins(segments: np.ndarray, anchor_bins: int) -> np.ndarray:
    """The bins of a recording that a model gives outputs for: each segment's after its first S."""
    return np.concatenate([np.arange(a + anchor_bins, b) for a, b in segments])


def streamed(family: Family, tensors: Tensors, segments: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Segments side by side, each anchored on its first S bins; what is padded after a segment's end is cut off."""
    device = family.readin.mean.device
    lengths = segments[:, 1] - segments[:, 0]
    index = torch.from_numpy(segments[:, :1] + np.minimum(np.arange(lengths.max()), lengths[:, None] - 1))
    x = tensors.counts[index][..., tensors.heldin].to(device)
    u = None if tensors.u is None else tensors.u[index].to(device)
    outputs = stream(family, x, u=u)
    modelled = lengths - family.dims.anchor_bins
    return [
        {name: value[i, :n].cpu().numpy() for name, value in outputs._asdict().items() if value is not None}
        for i, n in enumerate(modelled)
    ]


@torch.no_grad()
def smoothed(family: Family, tensors: Tensors, segments: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Each segment by windows of S + R bins every R bins, of which the bins after the first S are kept."""
    family.eval()
    s, bins = family.dims.anchor_bins, family.dims.anchor_bins + family.dims.horizon_bins
    results = []
    for a, b in segments.tolist():
        firsts = torch.tensor(sorted({*range(a, b - bins + 1, bins - s), b - bins}))
        batch = tensors.windows_at(firsts, bins, family.readin.mean.device)
        x = family.readin.normalise(batch.inputs)
        outputs = family(x, torch.ones_like(x[..., :1]), batch.u, False).outputs
        where = (firsts[:, None] - a - s + torch.arange(s, bins)).numpy()
        whole = {}
        for name, value in outputs._asdict().items():
            if value is not None:
                whole[name] = np.empty((b - a - s, value.shape[-1]), np.float32)
                whole[name][where] = value[:, s:].cpu().numpy()
        results.append(whole)
    return results
