"""Windows of S + R bins, drawn from recordings' segments: at random offsets to train on, as tiles to score.

Several sessions share a model, and a batch: its windows are of any of them, sorted by session, since neurons differ.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rtdsae.errors import TrainingError
from rtdsae.model.priors import Context
from rtdsae.recordings import Recording, mapped
from rtdsae.recordings.segments import lengths_of
from rtdsae.train.config import Fit, TrainConfig
from rtdsae.train.sessions import vocabulary

__all__ = [
    "Batch",
    "Part",
    "SessionWindows",
    "Tensors",
    "Windows",
    "by_session",
    "draw_batches",
    "entries_apart",
    "epoch_seed",
    "session_windows",
]

MOST_VALUES = 40_000_000  # that means and deviations are taken from
CV_SEED = 11  # the entries that `objective.cv_mask` keeps apart are the same in all epochs and runs


class Batch(NamedTuple):
    """Windows of one session.

    Attributes:
        counts: (B, T, n_neurons), all neurons.
        inputs: (B, T, n_channels), those that the encoders see.
        u: (B, T, U) external inputs, or None.
        apart: (B, T, n_neurons), 1 for entries that are neither shown nor trained on; None where there are none.
    """

    counts: Tensor
    inputs: Tensor
    u: Tensor | None
    apart: Tensor | None


class Part(NamedTuple):
    """What a training batch has of one session.

    Attributes:
        session: which of the model's sessions it is.
        first: (B,) the first bins of its windows.
        windows: these.
        context: what is known of them.
        heldin: (n_neurons,) bool, the neurons that the encoders see.
    """

    session: int
    first: Tensor
    windows: Batch
    context: Context
    heldin: Tensor


class Tensors:
    """A recording's bins as tensors.

    Args:
        recording: where they come from.
        cv_mask: fraction of the entries that is kept apart.

    Attributes:
        counts: (bins, n_neurons), in the recording's own memory where its type is small, else a copy of a byte or four
            each, on disk where it is large: hours of a thousand channels become floats a batch at a time.
        heldin: (n_neurons,) bool, the neurons that the encoders see.
        u: (bins, U) float32, or None.
    """

    def __init__(self, recording: Recording, cv_mask: float = 0.0) -> None:
        self.recording = recording
        with warnings.catch_warnings():  # nothing writes to them, and trials of a search share what they may only read
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            self.counts = torch.from_numpy(compact(recording.counts))
        self.heldin = torch.from_numpy(recording.heldin)
        u = recording.external
        self.u = None if u is None else torch.from_numpy(mapped.copied(u, np.float32, "a copy of the external inputs"))
        self.cv_mask = cv_mask

    def windows_at(self, first: Tensor, bins: int, device: torch.device | str = "cpu") -> Batch:
        """The windows of `bins` bins that begin at the bins `first`, (B,)."""
        index = first[:, None] + torch.arange(bins)
        counts = self.counts[index].to(device).float()
        u = None if self.u is None else self.u[index].to(device)
        apart = entries_apart(index, counts.shape[-1], self.cv_mask).to(device) if self.cv_mask else None
        return Batch(counts, counts[..., self.heldin.to(device)], u, apart)


def entries_apart(bins: Tensor, n_neurons: int, fraction: float) -> Tensor:
    """Which entries of these bins, (B, T), are kept apart: (B, T, n_neurons) of 0 and 1.

    A hash of bin and neuron tells, so that the same ones are apart whenever they are drawn and no mask of a whole
    recording is held.
    """
    neurons = np.arange(n_neurons, dtype=np.uint32) * np.uint32(0x9E3779B9)
    mixed = _mix(_mix(bins.numpy().astype(np.uint32) + np.uint32(CV_SEED))[..., None] + neurons)
    return torch.from_numpy(mixed < np.uint32(fraction * 2**32)).float()


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of MurmurHash3 (Appleby 2011), of uint32, in place."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    return x


def compact(counts: np.ndarray) -> np.ndarray:
    """The same values in a type of at most four bytes; no copy where it is one already."""
    if counts.dtype == np.uint16 and counts.max() < 1 << 15:
        counts = counts.view(np.int16)  # which PyTorch can index, where they are
    kind = counts.dtype
    if kind not in (np.float32, np.uint8, np.int8, np.int16):
        kind = np.dtype(np.uint8 if counts.max() < 1 << 8 and mapped.whole(counts) else np.float32)
    if counts.dtype == kind:
        return counts
    return mapped.copied(counts, kind, f"a copy of the counts as {kind}")


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
        chosen = np.flatnonzero(recording.in_split(split))
        segments = recording.segments[chosen]
        long_enough = lengths_of(segments) >= bins
        self.index = chosen[long_enough]  # in the recording's own segments
        self.segments = segments[long_enough]
        self.too_short = len(segments) - len(self.segments)
        self.bins, self.stride = bins, stride
        if len(self.segments) == 0:
            longest = lengths_of(segments).max(initial=0)
            raise TrainingError(
                f"no {split} segment holds a window of {bins} bins (window.anchor_bins + window.horizon_bins): "
                f"the longest of {len(segments)} has {longest}; lower one of the two, or choose other splits"
            )

    def per_segment(self) -> Tensor:
        """How many windows each segment has in an epoch, (n,)."""
        lengths = torch.from_numpy(lengths_of(self.segments))
        return -(-(lengths - self.bins) // self.stride) + 1

    def tiles(self) -> Tensor:
        """First bins of windows that cover every segment, the last one flush with the segment's end: (n,)."""
        firsts = [sorted({*range(a, b - self.bins + 1, self.stride), b - self.bins}) for a, b in self.segments.tolist()]
        return torch.tensor([first for segment in firsts for first in segment])

    def draw(self, generator: torch.Generator) -> Tensor:
        """First bins of one epoch's windows, shuffled: as many in a segment as it has tiles, at random offsets."""
        lengths = torch.from_numpy(lengths_of(self.segments))
        segment = torch.repeat_interleave(torch.arange(len(lengths)), self.per_segment())
        room = (lengths - self.bins + 1)[segment]
        offset = (torch.rand(len(segment), generator=generator) * room).long()
        firsts = torch.from_numpy(self.segments[:, 0])[segment] + offset
        return firsts[torch.randperm(len(firsts), generator=generator)]

    def segment_of(self, first: Tensor) -> Tensor:
        """Which of the segments the windows that begin at `first` lie in, (B,)."""
        return torch.searchsorted(torch.from_numpy(self.segments[:, 0]).contiguous(), first, right=True) - 1


class SessionWindows:
    """One session as training sees it.

    Args:
        tensors: its bins.
        bins: S + R.
        stride: R.
        vocabulary: the conditions of all sessions, by which labels are counted; empty where one has none.
        first_sequence: how many training segments the sessions before it have.
        index: which of the model's sessions it is.

    Attributes:
        expected: (bins, n_neurons), a teacher's expected counts, where there is one.
    """

    def __init__(
        self,
        tensors: Tensors,
        bins: int,
        stride: int,
        vocabulary: list[str],
        first_sequence: int = 0,
        index: int = 0,
    ) -> None:
        self.tensors, self.index = tensors, index
        self.train, self.valid = (Windows(tensors.recording, split, bins, stride) for split in ("train", "valid"))
        self.first_sequence = first_sequence
        self.expected: Tensor | None = None
        conditions = tensors.recording.conditions
        known = conditions is not None and vocabulary
        self.labels = (
            torch.tensor([vocabulary.index(str(conditions[i])) for i in self.train.index])  # type: ignore[index]
            if known
            else None
        )

    def context(self, first: Tensor, device: torch.device | str = "cpu") -> Context:
        """What is known of the training windows that begin at `first`, (B,)."""
        segment = self.train.segment_of(first)
        label = None if self.labels is None else self.labels[segment].to(device)
        windows = self.train.per_segment()[segment].float()
        return Context(label, (self.first_sequence + segment).to(device), windows.to(device))

    def part(self, first: Tensor, device: torch.device | str = "cpu") -> Part:
        """What a batch has of this session: the training windows that begin at `first`, (B,)."""
        heldin = self.tensors.heldin.to(device)
        return Part(self.index, first, self.training_batch(first, device), self.context(first, device), heldin)

    def training_batch(self, first: Tensor, device: torch.device | str = "cpu") -> Batch:
        """The training windows that begin at `first`, (B,): as they were recorded, or spikes of a teacher's rates."""
        batch = self.tensors.windows_at(first, self.train.bins, device)
        if self.expected is None:
            return batch
        expected = self.expected[first[:, None] + torch.arange(self.train.bins)].float()
        spikes = torch.poisson(expected[..., self.tensors.heldin])  # drawn on the CPU: the same on every device
        return batch._replace(counts=expected.to(device), inputs=spikes.to(device))

    def training_bins(self) -> Tensor:
        """Bins of the training segments, (T, n_neurons) float32: all, or evenly spaced ones of a long recording."""
        bins = int(lengths_of(self.train.segments).sum())
        every = -(-bins * self.tensors.counts.shape[1] // MOST_VALUES)
        return torch.cat([self.tensors.counts[a:b:every] for a, b in self.train.segments]).float()


def session_windows(recordings: Sequence[Recording], config: TrainConfig) -> list[SessionWindows]:
    """Each session's windows.

    Raises:
        TrainingError: no window fits.
    """
    s, r, words = config.window.anchor_bins, config.window.horizon_bins, vocabulary(recordings)
    sessions: list[SessionWindows] = []
    before = 0
    for i, recording in enumerate(recordings):
        sessions.append(SessionWindows(Tensors(recording, config.objective.cv_mask), s + r, r, words, before, i))
        before += len(sessions[-1].train.segments)
    return sessions


def epoch_seed(fit: Fit, epoch: int) -> int:
    """From which everything in an epoch is drawn."""
    return fit.seed * 1_000_003 + epoch


def draw_batches(sessions: list[SessionWindows], fit: Fit, epoch: int) -> list[Tensor]:
    """One epoch's batches: which of the sessions, and the first bin, of each window, (B, 2), in random order.

    A last batch of fewer windows than shards is left out.
    """
    generator = torch.Generator().manual_seed(epoch_seed(fit, epoch))
    firsts = [session.train.draw(generator) for session in sessions]
    drawn = torch.cat([torch.stack([torch.full_like(first, i), first], 1) for i, first in enumerate(firsts)])
    if len(sessions) > 1:
        drawn = drawn[torch.randperm(len(drawn), generator=generator)]
    if len(drawn) < fit.shards:
        raise TrainingError(
            f"fit.shards={fit.shards}, but an epoch has {len(drawn)} windows: set fit.shards to that or less"
        )
    return [batch for batch in drawn.split(fit.batch_size) if len(batch) >= fit.shards]


def by_session(drawn: Tensor) -> list[tuple[int, Tensor]]:
    """Windows as `draw_batches` has them, (B, 2): each session of theirs, and the first bins of its windows."""
    return [(i, drawn[drawn[:, 0] == i, 1]) for i in drawn[:, 0].unique().tolist()]
