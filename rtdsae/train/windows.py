"""Windows of S + R bins, drawn from a recording's segments: at random offsets to train on, as tiles to score."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rtdsae.errors import TrainingError
from rtdsae.recordings import Recording

__all__ = ["Batch", "Tensors", "Windows"]


class Batch(NamedTuple):
    """A batch of windows.

    Attributes:
        counts: (B, T, n_neurons), all neurons.
        inputs: (B, T, n_channels), those that the encoders see.
        u: (B, T, U) external inputs, or None.
    """

    counts: Tensor
    inputs: Tensor
    u: Tensor | None


class Tensors:
    """A recording's bins as tensors.

    Attributes:
        recording: where they come from.
        counts: (bins, n_neurons) float32.
        heldin: (n_neurons,) bool, the neurons that the encoders see.
        u: (bins, U) float32, or None.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.counts = torch.from_numpy(recording.counts.astype(np.float32))
        heldout = np.zeros(recording.n_channels, bool) if recording.heldout is None else recording.heldout
        self.heldin = torch.from_numpy(~heldout)
        self.u = None if recording.external is None else torch.from_numpy(recording.external.astype(np.float32))

    def windows_at(self, first: Tensor, bins: int, device: torch.device | str = "cpu") -> Batch:
        """The windows of `bins` bins that begin at the bins `first`, (B,)."""
        index = first[:, None] + torch.arange(bins)
        counts = self.counts[index].to(device)
        return Batch(counts, counts[..., self.heldin.to(device)], None if self.u is None else self.u[index].to(device))


class Windows:
    """The windows of one split; none crosses a segment's end.

    Args:
        recording: with its segments and splits.
        split: train, valid or test.
        bins: S + R.
        stride: R; tiles begin so far apart that every bin after the first S is modelled.

    Raises:
        TrainingError: no segment of the split is long enough.
    """

    def __init__(self, recording: Recording, split: str, bins: int, stride: int) -> None:
        splits = recording.splits if recording.splits is not None else np.full(recording.n_segments, "train")
        segments = recording.segments[splits == split]
        self.segments = segments[segments[:, 1] - segments[:, 0] >= bins]
        self.too_short = len(segments) - len(self.segments)
        self.bins, self.stride = bins, stride
        if len(self.segments) == 0:
            longest = int(max((s[1] - s[0] for s in segments), default=0))
            raise TrainingError(
                f"no {split} segment holds a window of {bins} bins (window.anchor_bins + window.horizon_bins): "
                f"the longest of {len(segments)} has {longest}; lower one of the two, or choose other splits"
            )

    def tiles(self) -> Tensor:
        """First bins of windows that cover every segment, the last one flush with the segment's end: (n,)."""
        firsts = [sorted({*range(a, b - self.bins + 1, self.stride), b - self.bins}) for a, b in self.segments.tolist()]
        return torch.tensor([first for segment in firsts for first in segment])

    def draw(self, generator: torch.Generator) -> Tensor:
        """First bins of one epoch's windows, shuffled: as many in a segment as it has tiles, at random offsets."""
        lengths = torch.from_numpy(self.segments[:, 1] - self.segments[:, 0])
        tiles = -(-(lengths - self.bins) // self.stride) + 1
        segment = torch.repeat_interleave(torch.arange(len(lengths)), tiles)
        room = (lengths - self.bins + 1)[segment]
        offset = (torch.rand(len(segment), generator=generator) * room).long()
        firsts = torch.from_numpy(self.segments[:, 0])[segment] + offset
        return firsts[torch.randperm(len(firsts), generator=generator)]
