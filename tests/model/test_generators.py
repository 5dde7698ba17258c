"""From the latents to the factors."""

import pytest
import torch
from torch import nn

from rtdsae.model.generators import Framewise, Generator

KINDS = ("clipped_gru", "gru", "lstm")
F, Z, U, DIM, FACTORS = 3, 2, 2, 5, 4


def generator(kind: str, static: str, external: int = U) -> Generator:
    torch.manual_seed(0)
    made = Generator(kind, F, Z, external, DIM, FACTORS, static, 5.0, 0.5)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return made.double().eval()


def latents(bins: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, bins, Z).double(), torch.randn(2, bins, F).double(), torch.randn(2, bins, U).double()


both_uses = pytest.mark.parametrize("static", ["initial_state", "tiled"])


@both_uses
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("external", [0, U])
def test_a_window_is_step_by_step(kind, static, external):
    made, (z, f, u) = generator(kind, static, external), latents()
    u = u if external else None
    factors = made(f, z, u)
    state = made.begin(f[:, 0])
    assert state.shape == (2, made.state_dim)
    for t in range(6):
        state = made.step(z[:, t], f[:, t], None if u is None else u[:, t], state)
        torch.testing.assert_close(factors[:, t], made.read(state))


def moved(made: Generator, index: int) -> list[bool]:
    """Which bins' factors change with f of bin 3, z of bin 3, or u of bin 3."""
    z, f, u = parts = latents()
    base = made(f, z, u)
    parts[index][:, 3] += 1
    other = made(f, z, u)
    return (base != other).any(2).all(0).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_tiled_f_works_from_its_own_bin_on_and_an_initial_state_from_the_first_alone(kind):
    from_bin_3 = [False] * 3 + [True] * 3
    assert moved(generator(kind, "tiled"), 1) == from_bin_3
    assert moved(generator(kind, "initial_state"), 1) == [False] * 6
    for static in ("tiled", "initial_state"):
        assert moved(generator(kind, static), 0) == from_bin_3
        assert moved(generator(kind, static), 2) == from_bin_3


@pytest.mark.parametrize("kind", KINDS)
def test_where_each_use_of_f_begins(kind):
    _, f, _ = latents()
    tiled, initial = generator(kind, "tiled"), generator(kind, "initial_state")
    assert torch.equal(tiled.begin(f[:, 0]), tiled.first.expand(2, -1))
    want = f[:, 0] @ initial.initial.weight.T + initial.initial.bias
    torch.testing.assert_close(initial.begin(f[:, 0]), want)


def test_factors_are_read_by_rows_of_unit_norm():
    made = generator("lstm", "tiled")
    torch.testing.assert_close(made.factors.unit_weight().norm(dim=1), torch.ones(FACTORS).double())
    state = torch.randn(3, made.state_dim).double()
    h = state[:, :DIM]  # of [h, c]
    rows = made.factors.weight / made.factors.weight.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(made.read(state), h @ rows.T)


def test_dropout_is_on_what_the_factors_are_read_from_and_not_on_the_dynamics():
    made, (z, f, u) = generator("gru", "tiled").train(), latents()
    state = made.begin(f[:, 0])
    states = [made.step(z[:, 0], f[:, 0], u[:, 0], state) for _ in range(2)]
    assert torch.equal(*states)
    assert not torch.equal(made.read(states[0]), made.read(states[0]))
    assert not torch.equal(made(f, z, u), made(f, z, u))


def test_framewise_is_two_layers_on_each_bin():
    torch.manual_seed(0)
    made, (z, f, u) = Framewise(F + Z + U, DIM, FACTORS, 0.5).double().eval(), latents()
    layers = [layer for layer in made.layers if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in layers] == [DIM, DIM, FACTORS]
    h = torch.cat([f, z, u], 2)
    for layer in layers[:-1]:
        h = (h @ layer.weight.T + layer.bias).clamp_min(0)
    torch.testing.assert_close(made(f, z, u), h @ layers[-1].weight.T + layers[-1].bias)
    torch.testing.assert_close(made(f, z, u)[:, 2], made(f[:, 2], z[:, 2], u[:, 2]))


def test_framewise_does_without_external_inputs():
    made, (z, f, _) = Framewise(F + Z, DIM, FACTORS, 0.0).double(), latents()
    assert made(f, z, None).shape == (2, 6, FACTORS)
