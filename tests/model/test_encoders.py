"""What each direction of an encoder sees, and the lag between bins and latents."""

import pytest
import torch

from rtdsae.model.encoders import Encoder, lagged, push

T = 6
KINDS = ("clipped_gru", "gru", "lstm")


def encoder(kind: str, direction: str) -> Encoder:
    torch.manual_seed(0)
    made = Encoder(kind, 2, 3, 5.0, direction)
    with torch.no_grad():
        for p in made.first.values():
            p.copy_(0.3 * torch.randn_like(p))
    return made.double()


def seen(made: Encoder) -> torch.Tensor:
    """(T, T), whether the encoding of bin t (row) depends on the input of bin s (column)."""
    x = torch.randn(1, T, 2).double().requires_grad_()
    rows = [torch.autograd.grad(made(x)[0, t].abs().sum(), x)[0][0].abs().sum(1) > 0 for t in range(T)]
    return torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_sees_no_future_backward_no_past_and_both_see_all(kind):
    past = torch.tril(torch.ones(T, T)).bool()
    assert torch.equal(seen(encoder(kind, "forward")), past)
    assert torch.equal(seen(encoder(kind, "backward")), past.T)
    assert seen(encoder(kind, "both")).all()


@pytest.mark.parametrize("kind", KINDS)
def test_backward_is_forward_on_reversed_time(kind):
    ahead, back = encoder(kind, "forward"), encoder(kind, "backward")
    back.cells["back"].load_state_dict(ahead.cells["ahead"].state_dict())
    with torch.no_grad():
        back.first["back"].copy_(ahead.first["ahead"])
    x, observed = torch.randn(2, T, 2).double(), torch.ones(2, T, 1).double()
    observed[0, 1:3] = 0
    torch.testing.assert_close(back(x, observed), ahead(x.flip(1), observed.flip(1)).flip(1))


@pytest.mark.parametrize("kind", KINDS)
def test_summary_is_the_last_state_of_each_direction(kind):
    made = encoder(kind, "both")
    x = torch.randn(2, T, 2).double().requires_grad_()
    encoded = made(x)
    assert encoded.shape == (2, T, made.dim)
    want = torch.cat([encoded[:, -1, :3], encoded[:, 0, 3:]], 1)
    torch.testing.assert_close(made.summary(x), want)
    (gradient,) = torch.autograd.grad(made.summary(x).sum(), x)
    assert (gradient.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_step_by_step_is_the_whole_window(kind):
    made = encoder(kind, "forward")
    x, observed = torch.randn(2, T, 2).double(), torch.ones(2, T, 1).double()
    observed[1, 2:4] = 0
    state = made.begin(2)
    for t, want in enumerate(made(x, observed).unbind(1)):
        state = made.step(x[:, t], state, observed[:, t])
        torch.testing.assert_close(made.out(state), want)
    torch.testing.assert_close(made.scan(x, observed)[:, -1], state)


@pytest.mark.parametrize("lag", range(4))
def test_a_pushed_line_lags_as_a_window_does(lag):
    start, encoded = 4, torch.randn(2, 9, 3)
    line = encoded[:, start - lag : start].flatten(1)
    streamed = []
    for t in range(start, 9):
        got, line = push(encoded[:, t], line)
        streamed.append(got)
        assert line.shape == (2, 3 * lag)
    window = lagged(encoded, start, lag)
    assert torch.equal(torch.stack(streamed, 1), window)
    assert torch.equal(window[:, 0], encoded[:, start - lag])
    assert window.shape == (2, 9 - start, 3)
