"""Whole windows of clipped GRUs, differentiated by hand: what training runs in place of one step after another.

The definitions are `ClippedGRUCell.update` and `LFADS.transition`; tests hold values and gradients here to them, in
float64. What is saved is what torch's autograd adds to the arithmetic: a graph of small operations, a product for each
bin and weight (here one over all bins), and separate products of what has the same input. The first axis is time.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Control", "at_once", "clipped_gru", "control_loop"]

HELD = 1e4  # added to the sum of u, whose sigmoid then is 1 and its slope 0, exactly: the state is held


def at_once(x: Tensor) -> bool:
    """Whether gradients are wanted, and of plain floats: else windows run by the readable step, the definition."""
    return torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type)


def clipped_gru(gates: Tensor, first: Tensor, weight: Tensor, clip: float, observed: Tensor | None) -> Tensor:
    """The states of a clipped GRU.

    Args:
        gates: (T, B, 3 D), the projected input.
        first: (B, D), the state before.
        weight: (D, 3 D), recurrent.
        clip: bound of the units.
        observed: (T, B, 1) of 0 and 1, where the state is held at 0; or None.

    Returns:
        (T, B, D).
    """
    return _ClippedGRU.apply(gates, first, weight, clip, observed)


class Control(NamedTuple):
    """What the loop of LFADS's controller and generator is made of; all but `min_var` and `clip` may have gradients.

    Attributes:
        con_gates: (T, B, 3 C), the controller's projected encodings.
        gen_gates: (T, B, 3 G), what the generator gets besides z, projected.
        con: (B, C), the controller's first state.
        gen: (B, G), the generator's.
        con_weight: (C, 3 C), recurrent.
        gen_weight: (G, 3 G), recurrent.
        z_weight: (Z, 3 G), from z to the generator's gates.
        feedback: (G, 3 C), from the generator to the controller's gates.
        head_weight: (2 Z, C), from the controller to z's mean and the logarithm of its variance.
        head_bias: (2 Z,).
        alpha: (Z,), of the AR(1) prior.
        logvar: (Z,), of its innovations.
    """

    con_gates: Tensor
    gen_gates: Tensor
    con: Tensor
    gen: Tensor
    con_weight: Tensor
    gen_weight: Tensor
    z_weight: Tensor
    feedback: Tensor
    head_weight: Tensor
    head_bias: Tensor
    alpha: Tensor
    logvar: Tensor


def control_loop(
    parts: Control, noise: Tensor | None, observed: Tensor, min_var: float, clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """LFADS's controller, inferred input and generator over a window.

    Args:
        parts: states, weights and projected inputs.
        noise: (T, B, Z) standard normal, or None for means.
        observed: (T, B, 1) of 0 and 1; at 0 the controller is held and z drawn from its prior.
        min_var: floor of z's variance.
        clip: bound of the units.

    Returns:
        The generator's states (T, B, G), z (T, B, Z) and what the head says (T, B, 2 Z).
    """
    return _ControlLoop.apply(noise, observed, min_var, clip, *parts)


class _ClippedGRU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, first: Tensor, weight: Tensor, clip: float, observed: Tensor | None) -> Tensor:
        cell = _Cell(first, weight, clip, gates.clone(memory_format=torch.contiguous_format), observed)
        for t in range(len(gates)):
            cell.recur(t)
            cell.step(t)
        ctx.run = cell
        return cell.states.detach()[1:]  # not a view of what ctx holds: that would be a cycle, never freed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_states: Tensor) -> tuple[Tensor | None, ...]:
        cell = _once(ctx)
        back = _Back(cell)
        d_state, d_state_at = torch.zeros_like(d_states[0]), d_states.unbind()
        for t in reversed(range(len(d_states))):
            d_state = back.step(t, d_state.add_(d_state_at[t]))
            back.recur(t, d_state)
        return cell.gates, d_state, back.weight(), None, None


class _ControlLoop(torch.autograd.Function):
    """All gates are in one tensor: the controller's, then the generator's r and u, then its n.

    So what the generator's state goes into, the controller's gates and its own r and u, is one product.
    """

    @staticmethod
    def forward(
        ctx: Any, noise: Tensor | None, observed: Tensor, min_var: float, clip: float, *parts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        p = Control(*parts)
        n_bins, n_con, n_z = len(p.con_gates), p.con_gates.shape[2], len(p.alpha)
        gates = torch.cat([p.con_gates, p.gen_gates], 2)
        con = _Cell(p.con, p.con_weight, clip, gates[..., :n_con], observed)
        gen = _Cell(p.gen, p.gen_weight, clip, gates[..., n_con:])
        from_gen, to_head = torch.cat([p.feedback, gen.weight_ru], 1), p.head_weight.T
        zs, heads = p.con.new_zeros(n_bins + 1, len(p.con), n_z), p.con.new_empty(n_bins, len(p.con), 2 * n_z)
        noise = torch.zeros_like(zs[1:]) if noise is None else noise
        innovations, gaps = (0.5 * p.logvar).exp() * noise, _gaps(observed)
        fed, head, z, eps, innovation = (
            x.unbind() for x in (gates[..., : from_gen.shape[1]], heads, zs, noise, innovations)
        )
        mean, log = (part.unbind() for part in heads.split(n_z, 2))
        for t in range(n_bins):
            fed[t].addmm_(gen.state[t], from_gen)
            con.recur(t)
            con.step(t)
            torch.addmm(p.head_bias, con.state[t + 1], to_head, out=head[t])
            torch.addcmul(mean[t], log[t].exp().add_(min_var).sqrt_(), eps[t], out=z[t + 1])
            if (gap := gaps[t]) is not None:
                z[t + 1].lerp_(torch.addcmul(innovation[t], p.alpha, z[t]), gap)
            gen.gate[t].addmm_(z[t + 1], p.z_weight)
            gen.step(t)
        ctx.run = p, con, gen, zs, heads, from_gen, gates[..., : from_gen.shape[1]], noise, gaps, min_var
        return gen.states.detach()[1:], zs.detach()[1:], heads.detach()  # as above: no views

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_gens: Tensor, d_zs: Tensor, d_heads: Tensor) -> tuple[Tensor | None, ...]:
        p, con, gen, zs, heads, from_gen, fed, noise, gaps, min_var = _once(ctx)
        n_bins, n_con, n_z = len(noise), p.con_gates.shape[2], len(p.alpha)
        back_con, back_gen, d_heads = _Back(con), _Back(gen), d_heads.clone()
        variances = heads[..., n_z:].exp()
        slopes = 0.5 * noise * variances / (variances + min_var).sqrt()
        d_forecasts = torch.zeros_like(noise)  # of what the prior gave at gaps
        d_fed, d_head, d_gen_at, d_z_at, slope, d_forecast = (
            x.unbind() for x in (fed, d_heads, d_gens, d_zs, slopes, d_forecasts)
        )
        d_mean, d_log = (part.unbind() for part in d_heads.split(n_z, 2))
        to_gen, to_z = from_gen.T, p.z_weight.T
        d_gen, d_con, d_z_before = torch.zeros_like(p.gen), torch.zeros_like(p.con), None
        for t in reversed(range(n_bins)):
            d_gen = back_gen.step(t, d_gen.add_(d_gen_at[t]))
            d_z = torch.addmm(d_z_at[t], gen.gate[t], to_z)
            if d_z_before is not None:
                d_z += d_z_before
            d_z_before = None
            if (gap := gaps[t]) is not None:
                d_z -= torch.mul(d_z, gap, out=d_forecast[t])
                d_z_before = d_forecast[t] * p.alpha
            d_mean[t].add_(d_z)
            d_log[t].addcmul_(d_z, slope[t])
            d_con = back_con.step(t, d_con.addmm_(d_head[t], p.head_weight))
            back_con.recur(t, d_con)
            d_gen.addmm_(d_fed[t], to_gen)
        d_from_gen = _product(gen.states[:-1], fed)
        of_n = _product(gen.resets, gen.gates[..., 2 * gen.d :])
        d_parts = Control(
            con_gates=con.gates,
            gen_gates=gen.gates,
            con=d_con,
            gen=d_gen,
            con_weight=back_con.weight(),
            gen_weight=torch.cat([d_from_gen[:, n_con:], of_n], 1),
            z_weight=_product(zs[1:], gen.gates),
            feedback=d_from_gen[:, :n_con],
            head_weight=_product(d_heads, con.states[1:]),
            head_bias=d_heads.sum((0, 1)),
            alpha=(d_forecasts * zs[:-1]).sum((0, 1)),
            logvar=(d_forecasts * noise).sum((0, 1)) * 0.5 * (0.5 * p.logvar).exp(),
        )
        return None, None, None, None, *d_parts


class _Cell:
    """A clipped GRU's run: its states, and what the way back needs of each bin.

    `gates` (T, B, 3 D) holds what is summed up into r, u and n, and then r, u and n themselves. What is named in the
    singular is a list over bins of views: cutting them out costs more than most of the operations. Where `observed`,
    (T, B, 1), is 0 the state is held, whatever its bound.
    """

    def __init__(
        self, first: Tensor, weight: Tensor, clip: float, gates: Tensor, observed: Tensor | None = None
    ) -> None:
        n_bins, n, d = len(gates), *first.shape
        self.d, self.gates = d, gates
        self.may_clip = clip < 1 or bool(first.abs().amax() > clip)  # a new state lies between the old one and ±1
        bound = first.new_full((n_bins, 1, 1), clip)
        self.states = first.new_empty(n_bins + 1, n, d)
        self.states[0] = first
        self.resets = first.new_empty(n_bins, n, d)  # r ⊙ h
        self.minus_one = first.new_tensor(-1.0)
        if observed is not None:
            gates[..., d : 2 * d].add_((1 - observed) * HELD)
            bound = bound.where(observed > 0, torch.inf)
        self.bound = bound.unbind()
        self.weight_ru, self.weight_n = (part.contiguous() for part in weight.split([2 * d, d], 1))
        self.state, self.reset, self.gate = self.states.unbind(), self.resets.unbind(), gates.unbind()
        self.ru = gates[..., : 2 * d].unbind()
        self.r, self.u, self.n = (part.unbind() for part in gates.split(d, 2))

    def recur(self, t: int) -> None:
        """Adds the state before bin t to the sums of r and u."""
        self.ru[t].addmm_(self.state[t], self.weight_ru)

    def step(self, t: int) -> None:
        """From the sums of bin t, n's without its recurrent part, to the state."""
        state, new, n = self.state[t], self.state[t + 1], self.n[t]
        self.ru[t].sigmoid_()
        torch.mul(self.r[t], state, out=self.reset[t])
        n.addmm_(self.reset[t], self.weight_n, beta=2, alpha=2).sigmoid_()
        torch.add(self.minus_one, n, alpha=2, out=n)  # tanh, in half the time
        torch.lerp(n, state, self.u[t], out=new)
        if self.may_clip:
            torch.clamp(new, -self.bound[t], self.bound[t], out=new)


class _Back:
    """The way back through a cell's run, on which its gates become the gradients of their sums."""

    def __init__(self, cell: _Cell) -> None:
        self.cell = cell
        self.from_ru, self.from_n = cell.weight_ru.T, cell.weight_n.T
        self.d_ru = torch.empty_like(cell.ru[0], memory_format=torch.contiguous_format)
        self.d_r, self.d_u = self.d_ru.split(cell.d, 1)

    def step(self, t: int, d_new: Tensor) -> Tensor:
        """From the gradient of the state after bin t to that of the one before, but for what went through `recur`."""
        c, state, r, u, n = self.cell, self.cell.state[t], self.cell.r[t], self.cell.u[t], self.cell.n[t]
        if c.may_clip:
            d_new = d_new * (c.state[t + 1].abs() < c.bound[t])
        d_state = d_new * u
        torch.sub(state, n, out=self.d_u).mul_(d_new)
        torch.ops.aten.tanh_backward.grad_input(d_new.sub_(d_state), n, grad_input=n)
        d_reset = torch.mm(n, self.from_n)
        torch.mul(d_reset, state, out=self.d_r)
        d_state.addcmul_(d_reset, r)
        torch.ops.aten.sigmoid_backward.grad_input(self.d_ru, c.ru[t], grad_input=c.ru[t])
        return d_state

    def recur(self, t: int, d_state: Tensor) -> None:
        """Adds what the state before bin t gave to the sums of r and u."""
        d_state.addmm_(self.cell.ru[t], self.from_ru)

    def weight(self) -> Tensor:
        """The recurrent weight's gradient."""
        c = self.cell
        of_ru, of_n = c.gates.split([2 * c.d, c.d], 2)
        return torch.cat([_product(c.states[:-1], of_ru), _product(c.resets, of_n)], 1)


def _once(ctx: Any) -> Any:
    """What a run left for the way back, which spends it: gates become gradients in place.

    Raises:
        RuntimeError: the way back was taken before.
    """
    run, ctx.run = ctx.run, None
    if run is None:
        raise RuntimeError(
            "a scan is differentiated once: what it kept has become its gradients (rtdsae/model/scans.py)"
        )
    return run


def _gaps(observed: Tensor) -> list[Tensor | None]:
    """Of each bin 1 where it is not observed, (B, 1), or None where nobody has a gap."""
    gaps = 1 - observed
    return [gap if any_ else None for gap, any_ in zip(gaps.unbind(), (gaps.amax((1, 2)) > 0).tolist(), strict=True)]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Σ over bins and windows of a bᵀ: (T, B, M), (T, B, N) -> (M, N)."""
    return a.flatten(0, 1).T @ b.flatten(0, 1)
