"""Training windows altered a little, each time anew: against learning a small recording by heart.

Sources: spike jitter and temporal shift of lfads-torch (Sedler & Pandarinath 2023, arXiv:2309.01230). There a shift is
a rounded normal of deviation 3 within ±6 bins, here any within ±`shift_bins` alike; and there the encoders' inputs and
what is to be explained are moved each by a draw of its own, here by the same.
"""

import torch
from torch import Tensor

from rtdsae.train.config import Objective
from rtdsae.train.windows import Batch

__all__ = ["augment", "jitter_spikes", "shift_channels"]


def augment(batch: Batch, heldin: Tensor, o: Objective) -> Batch:
    """The batch with its counts altered as the objective says; inputs are of the same counts."""
    counts = batch.counts
    if o.spike_jitter_bins:
        counts = jitter_spikes(counts, o.spike_jitter_bins)
    if o.shift_bins:
        counts = shift_channels(counts, o.shift_bins)
    return batch if counts is batch.counts else batch._replace(counts=counts, inputs=counts[..., heldin])


def jitter_spikes(counts: Tensor, width: int) -> Tensor:
    """Each spike in one of the bins up to `width` before or after its own, reflected at the window's ends.

    Args:
        counts: (B, T, N), not negative; of a count that is not whole, its fraction moves as a spike does.
        width: bins, below T.

    Returns:
        (B, T, N), as many spikes of each neuron in each window as before.
    """
    there = counts.nonzero()
    each = counts[tuple(there.T)]
    n = each.ceil().long()
    spikes, weights = there.repeat_interleave(n, 0), each.new_ones(int(n.sum()))
    weights[n.cumsum(0) - 1] = each - (n - 1)  # the last of each
    window, t, neuron = spikes.T
    t = (t + torch.randint(-width, width + 1, t.shape, device=t.device)).abs()
    last = counts.shape[1] - 1
    t = torch.where(t > last, 2 * last - t, t)
    return torch.zeros_like(counts).index_put_((window, t, neuron), weights, accumulate=True)


def shift_channels(counts: Tensor, most: int) -> Tensor:
    """Each neuron of each window as a whole up to `most` bins earlier or later; the end that is left over is repeated.

    Args:
        counts: (B, T, N).
        most: bins.
    """
    b, n_bins, n = counts.shape
    shift = torch.randint(-most, most + 1, (b, 1, n), device=counts.device)
    source = (torch.arange(n_bins, device=counts.device)[None, :, None] - shift).clamp(0, n_bins - 1)
    return counts.gather(1, source)
