"""What training runs, differentiated by hand, is the readable step: values and gradients, in float64."""

import pytest
import torch

from rtdsae.model.cells import Cell, ClippedGRUCell, make_cell
from rtdsae.model.families import LFADSConfig, make_family
from rtdsae.model.families import lfads as lfads_module
from rtdsae.model.family import Dims, Neurons
from rtdsae.model.priors import Tiled
from rtdsae.model.scans import at_once

B, T, S, R, C, U = 3, 9, 4, 7, 5, 2
CLIPS = [9.0, 1.5, 0.3]  # the second one is passed by first states alone, the third one is reached from within


def gradients(values, weights, parameters):
    total = sum((value * weight).sum() for value, weight in zip(values, weights, strict=True))
    return torch.autograd.grad(total, parameters, allow_unused=True)


def assert_same(found, expected):
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert (a is None) == (b is None), i
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("gaps", [False, True])
def test_a_clipped_grus_scan_is_its_update(clip, gaps):
    torch.manual_seed(0)
    cell = ClippedGRUCell(C, 6, clip).double()
    x = torch.randn(B, T, C, dtype=torch.float64, requires_grad=True)
    first = (2 * torch.randn(B, 6, dtype=torch.float64)).requires_grad_()
    assert (first.abs().amax() > clip) == (clip < 9)
    observed = (torch.rand(B, T, 1) > 0.4).double() if gaps else None
    by_steps, at_once = Cell.scan(cell, x, first, observed), cell.scan(x, first, observed)
    assert at_once.grad_fn is not None
    assert "ClippedGRU" in type(at_once.grad_fn.next_functions[0][0]).__name__ + type(at_once.grad_fn).__name__
    torch.testing.assert_close(at_once, by_steps, rtol=1e-12, atol=1e-14)
    if clip < 1:
        assert (by_steps.abs() >= clip).any()
    weights, parameters = [torch.randn_like(by_steps)], [x, first, *cell.parameters()]
    assert_same(gradients([at_once], weights, parameters), gradients([by_steps], weights, parameters))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("gaps", [False, True])
def test_torchs_window_is_the_cells_update(kind, gaps):
    torch.manual_seed(0)
    cell = make_cell(kind, C, 6, clip=5.0).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    x = torch.randn(B, T, C, dtype=torch.float64, requires_grad=True)
    first = torch.randn(B, cell.state_dim, dtype=torch.float64, requires_grad=True)
    observed = torch.ones(B, T, 1, dtype=torch.float64) if gaps else None
    if gaps:
        observed[0, :2] = observed[1, 3:5] = observed[1, -1] = 0  # before any bin, within, and to the end
        observed[2] = 0
    by_steps, by_torch = cell.out(Cell.scan(cell, x, first, observed)), cell.encode(x, first, observed)
    torch.testing.assert_close(by_torch, by_steps, rtol=1e-12, atol=1e-14)
    weights, parameters = [torch.randn_like(by_steps)], [x, first, *cell.parameters()]
    assert_same(gradients([by_torch], weights, parameters), gradients([by_steps], weights, parameters))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_torch_runs_windows_where_gradients_are_wanted_alone(kind, monkeypatch):
    cell, x = make_cell(kind, C, 6, clip=5.0), torch.zeros(B, T, C)
    runs = []
    monkeypatch.setattr(type(cell), "run", lambda *_: runs.append(1) or torch.zeros(B, T, 6))
    first = torch.zeros(B, cell.state_dim)
    cell.encode(x, first)
    assert runs == [1]
    with torch.no_grad():
        cell.encode(x, first)
    with torch.autocast("cpu", torch.bfloat16):  # torch's LSTM fails in it
        cell.encode(x, first)
    assert runs == [1]


CASES = {
    "defaults": {},
    "tiled": {"f_to_generator": "tiled"},
    "external": {"n_external": U},
    "tiled, external": {"f_to_generator": "tiled", "n_external": U},
    "lag": {"z_lag": 2},
    "clipped": {"clip": 0.3},
    "begun beyond the clip": {"clip": 1.5, "first": 20.0},
    "acausal": {"causal": False},
}


def model(n_external=0, first=1.0, **options):
    torch.manual_seed(0)
    sizes = {"f_dim": 4, "z_dim": 3, "gen_dim": 8, "fac_dim": 4, "ic_enc_dim": 5, "ci_enc_dim": 6, "con_dim": 7}
    config = LFADSConfig(**sizes, dropout=0.0, **options)
    family = make_family(config, Dims((Neurons("one", C, C),), n_external, 0, 0, B, 0.02, S, R)).double()
    with torch.no_grad():
        for parameter in family.parameters():  # nothing that begins at 0 may hide a term
            parameter += 0.3 * torch.randn_like(parameter)
        if family.gen.initial is not None:
            family.gen.initial.weight *= first
    return family


def inferred(family, by_steps, monkeypatch, sample):
    monkeypatch.setattr(lfads_module, "at_once", lambda x: not by_steps)
    torch.manual_seed(1)
    x = torch.randn(B, S + R, C, dtype=torch.float64)
    observed = torch.ones(B, S + R, 1, dtype=torch.float64)
    observed[0, S : S + 2] = observed[1, -1] = 0
    n_u = family.dims.n_external
    u = torch.randn(B, R if family.causal else S + R, n_u, dtype=torch.float64) if n_u else None
    got = family.infer(x, observed, u, sample)
    return [got.factors, got.z, got.q_z.mean, got.q_z.logvar, got.p_z.mean, got.p_z.logvar, got.f]


@pytest.mark.parametrize("sample", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_lfads_by_hand_is_its_transition(case, sample, monkeypatch):
    family = model(**CASES[case])
    assert family.handwritten
    by_steps, at_once = (inferred(family, slow, monkeypatch, sample) for slow in (True, False))
    for found, expected in zip(at_once, by_steps, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    weights, parameters = (
        [torch.randn_like(value) for value in by_steps],
        [p for p in family.parameters() if p.requires_grad],
    )
    found, expected = gradients(at_once, weights, parameters), gradients(by_steps, weights, parameters)
    assert sum(g is not None for g in expected) > 20
    assert_same(found, expected)


@pytest.mark.parametrize("options", [{"cell": "gru"}, {"cell": "lstm"}, {"z_posterior": "full"}, {"z_prior": Tiled()}])
def test_other_settings_go_step_by_step(options):
    assert not model(**options).handwritten


def test_without_gradients_or_in_mixed_precision_it_goes_step_by_step():
    x = torch.zeros(1)
    assert at_once(x)
    with torch.no_grad():
        assert not at_once(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not at_once(x)


def test_what_the_way_back_needs_is_freed_with_the_graph():
    """A view among the outputs would hold the whole run for ever."""
    import gc
    import weakref

    cell = ClippedGRUCell(C, 6, 5.0)
    states = cell.scan(torch.randn(B, T, C), torch.zeros(B, 6))
    node = states.grad_fn.next_functions[0][0]
    kept = weakref.ref(node.run.states)
    states.sum().backward()
    del states, node
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("scan", ["clipped_gru", "control_loop"])
def test_the_way_back_is_taken_once(scan):
    """Its gates become their gradients: a second time would be wrong in silence."""
    family, x = model(), torch.randn(B, S + R, C, dtype=torch.float64)
    out = (
        family.ci_enc(x) if scan == "clipped_gru" else family.infer(x, torch.ones_like(x[..., :1]), None, True).factors
    )
    out.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        out.sum().backward()
