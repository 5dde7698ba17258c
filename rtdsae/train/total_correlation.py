"""The KL of the static latent, taken apart: what it tells of the data, how its dimensions hang together, their own.

    E_x KL(q(f|x) || p(f)) = I(x; f)  +  KL(q(f) || Π_d q(f_d))  +  Σ_d KL(q(f_d) || p(f_d))
                             MI          TC                         dimension-wise KL

(Chen et al. 2018, arXiv:1802.04942, eq. 2). q(f), the mixture of all N posteriors, is estimated from the M posteriors
of a batch. All in nats.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rtdsae.model.distributions import Gaussian

__all__ = ["Estimator", "Parts", "decompose", "log_weights"]

Estimator = Literal["weighted", "stratified"]


class Parts(NamedTuple):
    """The three parts, each a scalar."""

    mi: Tensor
    tc: Tensor
    dim_kl: Tensor


def decompose(q: Gaussian, f: Tensor, p: Gaussian, n_data: int, estimator: Estimator) -> Parts:
    """Estimate the parts from a batch.

    Args:
        q: its posteriors, (M, D).
        f: a sample of each, (M, D).
        p: the prior of each, (M, D), diagonal.
        n_data: N, the posteriors of the whole data.
        estimator: how q(f) is estimated, see `log_weights`.
    """
    weights = log_weights(len(f), n_data, estimator, f)
    others = q.map(lambda part: part[None])  # of every sample (axis 0) under every posterior (axis 1)
    joint = torch.logsumexp(weights + q.log_prob_of_each(f), 1)
    variance = others.variance()
    each = -0.5 * ((f[:, None] - others.mean) ** 2 / variance + variance.log() + math.log(2 * math.pi))
    marginals = torch.logsumexp(weights[..., None] + each, 1).sum(1)
    own, prior = q.log_prob(f), p.log_prob(f)
    return Parts((own - joint).mean(), (joint - marginals).mean(), (marginals - prior).mean())


def log_weights(m: int, n: int, estimator: Estimator, like: Tensor) -> Tensor:
    """Log weights of the posteriors of a batch in the estimate of q(f_i), (M, M); row i is for sample i.

    `weighted` gives each 1 / (N M) (eq. S5). It is biased low, by up to log N: good for gradients, not for reports.
    `stratified` gives 1 / N to the sample's own posterior, (N - B) / (N B) to one other and 1 / B to the rest, with
    B = M - 1, and is unbiased (eq. S7). The one other is the next in the batch.
    """
    if estimator == "weighted" or m < 2:
        return like.new_full((m, m), -math.log(n * m))
    b, own = m - 1, torch.arange(m)
    w = like.new_full((m, m), 1 / b)
    w[own, own] = 1 / n
    w[own, (own + 1) % m] = max(n - b, 0) / (n * b)
    return w.log()
