import numpy as np
import torch

from rtdsae.model.cells import BiGRU, ClippedGRUCell, hold


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def reference_gru(cell: ClippedGRUCell, x: np.ndarray, h: np.ndarray) -> np.ndarray:
    """The module's equations in numpy, gate by gate."""
    d = cell.dim
    wx, wh, b = (p.detach().numpy() for p in (cell.weight_x, cell.weight_h, cell.bias))
    r = sigmoid(x @ wx[:, :d] + h @ wh[:, :d] + b[:d])
    u = sigmoid(x @ wx[:, d : 2 * d] + h @ wh[:, d : 2 * d] + b[d : 2 * d])
    n = np.tanh(x @ wx[:, 2 * d :] + (r * h) @ wh[:, 2 * d :] + b[2 * d :])
    return np.clip(u * h + (1 - u) * n, -cell.clip, cell.clip)


def test_cell_follows_its_equations():
    cell = ClippedGRUCell(3, 4, clip=0.5).double()
    rng = np.random.default_rng(0)
    x, h = rng.normal(size=(5, 3)), rng.normal(size=(5, 4))
    got = cell(torch.from_numpy(x), torch.from_numpy(h)).detach().numpy()
    np.testing.assert_allclose(got, reference_gru(cell, x, h), atol=1e-12)
    assert np.abs(got).max() == 0.5  # the clip was reached, so it was tested


def test_scan_is_the_cell_step_by_step_and_holds_in_gaps():
    cell = ClippedGRUCell(3, 4, clip=5.0).double()
    x, h = torch.randn(2, 6, 3).double(), torch.randn(2, 4).double()
    observed = torch.ones(2, 6, 1).double()
    observed[0, 2:4] = 0
    states = cell.scan(x, h, observed)
    for t in range(6):
        h = hold(cell(x[:, t], h), h, observed[:, t])
        torch.testing.assert_close(states[:, t], h)
    assert torch.equal(states[0, 1], states[0, 3])
    assert not torch.equal(states[1, 1], states[1, 3])


def test_bidirectional_summary_sees_both_ends():
    gru = BiGRU(2, 3, clip=5.0)
    x = torch.randn(1, 5, 2, requires_grad=True)
    gru.summary(x).sum().backward()
    assert (x.grad.abs().sum(-1) > 0).all()
    ahead, back = gru(x)
    assert torch.equal(gru.summary(x), torch.cat([ahead[:, -1], back[:, 0]], 1))
