"""Original: a stream as a file holds it, before any bin: its samples, and when each was."""

from dataclasses import dataclass, replace

import numpy as np

__all__ = ["Original"]


@dataclass(frozen=True, eq=False)
class Original:
    """Samples of a regular stream, or spikes: what a rig sent, jitter and gaps included.

    Attributes:
        name: for people.
        nominal_rate_hz: samples a second; 0 where the samples are spikes.
        channels: labels. Of spikes: of the channels that they name by number, from 0.
        samples: `(n, C)`; of spikes `(n, 1)`, the channel's number.
        stamps: `(n,)` seconds on the file's clock, in the order in which they were stored.
        bin_width_s: width of a bin where the stream says it, else None.
        heldout: true for channels that a model must predict without seeing them, `(C,)`, where the file says so.
    """

    name: str
    nominal_rate_hz: float
    channels: tuple[str, ...]
    samples: np.ndarray
    stamps: np.ndarray
    bin_width_s: float | None = None
    heldout: np.ndarray | None = None

    @classmethod
    def of_spikes(
        cls, name: str, channels: tuple[str, ...], times: list[np.ndarray], heldout: np.ndarray | None = None
    ) -> "Original":
        """Spikes of each channel, `times` in seconds, as one stream in order of time."""
        stamps = np.concatenate([*times, np.zeros(0)])
        numbers = np.repeat(np.arange(len(times)), [len(t) for t in times])
        order = np.argsort(stamps, kind="stable")
        return cls(name, 0.0, channels, numbers[order, None], stamps[order], heldout=heldout)

    def select(self, kept: np.ndarray) -> "Original":
        """The stream without the channels for which `kept`, `(C,)`, is False."""
        channels = tuple(label for label, k in zip(self.channels, kept, strict=True) if k)
        heldout = None if self.heldout is None else self.heldout[kept]
        if self.nominal_rate_hz:
            return replace(self, channels=channels, samples=self.samples[:, kept], heldout=heldout)
        spikes = kept[self.samples[:, 0]]
        renumbered = (np.cumsum(kept) - 1)[self.samples[spikes]]
        return replace(self, channels=channels, samples=renumbered, stamps=self.stamps[spikes], heldout=heldout)
