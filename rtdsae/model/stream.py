"""The offline driver: run a model over recorded bins exactly as the daemon will, `anchor` then `step`, bin by bin."""

import torch
from torch import Tensor

from rtdsae.model.family import Family, Outputs

__all__ = ["go_on", "stream"]


@torch.no_grad()
def stream(model: Family, x: Tensor, observed: Tensor | None = None, u: Tensor | None = None) -> Outputs:
    """Stream windows of any length through a model in its evaluation mode.

    Args:
        model: a causal model; its training mode is left as it was.
        x: (B, T, C) counts, T > S.
        observed: (B, T, 1) of 0 and 1; all observed where None. The S anchor bins have to be observed.
        u: (B, T, U) external inputs, or None.

    Returns:
        Outputs of bins S..T-1, (B, T - S, ...) each, by posterior means.
    """
    training, s = model.training, model.dims.anchor_bins
    model.eval()
    seen = torch.ones_like(x[..., :1]) if observed is None else observed
    _, outputs = go_on(model, model.anchor(x[:, :s]), x[:, s:], seen[:, s:], None if u is None else u[:, s:])
    model.train(training)
    return outputs


@torch.no_grad()
def go_on(model: Family, state: Tensor, x: Tensor, observed: Tensor, u: Tensor | None) -> tuple[Tensor, Outputs]:
    """The bins (B, T, C) after a state, in evaluation mode: the state after them, and their outputs."""
    outs = []
    for t in range(x.shape[1]):
        state, out = model.step(state, x[:, t], observed[:, t], None if u is None else u[:, t])
        outs.append(out)
    stacked = (None if parts[0] is None else torch.stack(parts, 1) for parts in zip(*outs, strict=True))
    return state, Outputs(*stacked)  # type: ignore[arg-type]
