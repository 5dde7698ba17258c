"""The cells against numpy's gates and torch's own cells."""

import numpy as np
import pytest
import torch
from torch import nn

from rtdsae.model.cells import ClippedGRUCell, GRUCell, LSTMCell, hold, make_cell

KINDS = ("clipped_gru", "gru", "lstm")


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def shaken(module: nn.Module) -> nn.Module:
    """The module in double precision, with no parameter left at a value that hides it."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return module.double()


def reference_gru(cell: ClippedGRUCell, x: np.ndarray, h: np.ndarray) -> np.ndarray:
    """The module's equations in numpy, gate by gate."""
    d = cell.dim
    wx, wh, b = (p.detach().numpy() for p in (cell.weight_x, cell.weight_h, cell.bias))
    r = sigmoid(x @ wx[:, :d] + h @ wh[:, :d] + b[:d])
    u = sigmoid(x @ wx[:, d : 2 * d] + h @ wh[:, d : 2 * d] + b[d : 2 * d])
    n = np.tanh(x @ wx[:, 2 * d :] + (r * h) @ wh[:, 2 * d :] + b[2 * d :])
    return np.clip(u * h + (1 - u) * n, -cell.clip, cell.clip)


def test_clipped_gru_follows_its_equations():
    torch.manual_seed(0)
    cell = shaken(ClippedGRUCell(3, 4, clip=0.5))
    rng = np.random.default_rng(0)
    x, h = rng.normal(size=(5, 3)), rng.normal(size=(5, 4))
    got = cell(torch.from_numpy(x), torch.from_numpy(h)).detach().numpy()
    np.testing.assert_allclose(got, reference_gru(cell, x, h), atol=1e-12)
    assert np.abs(got).max() == 0.5  # the clip was reached, so it was tested


def test_gru_is_torchs():
    """torch's gates are r, z, n, and its z keeps the old state, as our u does."""
    torch.manual_seed(0)
    cell, theirs = shaken(GRUCell(3, 4)), nn.GRUCell(3, 4).double()
    with torch.no_grad():
        theirs.weight_ih.copy_(cell.weight_x.T)
        theirs.weight_hh.copy_(cell.weight_h.T)
        theirs.bias_ih.copy_(cell.bias)
        theirs.bias_hh.copy_(torch.cat([torch.zeros(8), cell.bias_n]))
    x, h = torch.randn(5, 3).double(), torch.randn(5, 4).double()
    torch.testing.assert_close(cell(x, h), theirs(x, h), atol=1e-12, rtol=0)


def test_lstm_is_torchs():
    torch.manual_seed(0)
    cell, theirs = shaken(LSTMCell(3, 4)), nn.LSTMCell(3, 4).double()
    with torch.no_grad():
        theirs.weight_ih.copy_(cell.weight_x.T)
        theirs.weight_hh.copy_(cell.weight_h.T)
        theirs.bias_ih.copy_(cell.bias)
        theirs.bias_hh.zero_()
    x, h, c = torch.randn(5, 3).double(), torch.randn(5, 4).double(), torch.randn(5, 4).double()
    state = cell(x, torch.cat([h, c], 1))
    want_h, want_c = theirs(x, (h, c))
    torch.testing.assert_close(state, torch.cat([want_h, want_c], 1), atol=1e-12, rtol=0)
    assert torch.equal(cell.out(state), state[:, :4])


@pytest.mark.parametrize("kind", KINDS)
def test_scan_is_the_cell_step_by_step_and_holds_in_gaps(kind):
    torch.manual_seed(0)
    cell = shaken(make_cell(kind, 3, 4, clip=5.0))
    x, state = torch.randn(2, 6, 3).double(), torch.randn(2, cell.state_dim).double()
    observed = torch.ones(2, 6, 1).double()
    observed[0, 2:4] = 0
    states = cell.scan(x, state, observed)
    unheld = cell.scan(x, state)
    for t in range(6):
        state = hold(cell(x[:, t], state), state, observed[:, t])
        torch.testing.assert_close(states[:, t], state)
    assert torch.equal(states[0, 1], states[0, 3])
    assert not torch.equal(states[1, 1], states[1, 3])
    torch.testing.assert_close(unheld[1], states[1])  # where all was observed, nothing is held
    assert cell.out(states).shape == (2, 6, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_cell_remembers(kind):
    """Without input or recurrent weights, the state decays by σ(1) a bin: the bias of the gate that keeps it is 1."""
    cell = make_cell(kind, 1, 3, clip=5.0).double()
    with torch.no_grad():
        cell.weight_x.zero_()
        cell.weight_h.zero_()
    kept = slice(3, 6) if kind == "lstm" else slice(None)  # c of [h, c]
    state = torch.full((1, cell.state_dim), 0.5).double()
    after = cell(torch.zeros(1, 1).double(), state)[:, kept]
    torch.testing.assert_close(after, torch.full((1, 3), 0.5 * sigmoid(1.0)).double())


def test_a_new_cells_weights_are_scaled_by_what_they_are_multiplied_with():
    torch.manual_seed(0)
    for kind in KINDS:
        cell = make_cell(kind, 400, 25, clip=5.0)
        torch.testing.assert_close(cell.weight_x.std(), torch.tensor(400**-0.5), rtol=0.1, atol=0)
        torch.testing.assert_close(cell.weight_h.std(), torch.tensor(25**-0.5), rtol=0.1, atol=0)


def test_a_new_clipped_gru_lets_its_past_through():
    """Its reset gate begins with a bias of 1 too, as in LFADS."""
    assert make_cell("clipped_gru", 2, 2, clip=5.0).bias.tolist() == [1, 1, 1, 1, 0, 0]
