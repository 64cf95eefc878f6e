"""Paths drawn from a combiner, in the fewest operations a step."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from pyrohmm.nn.dynamics import LEAST_SCALE


class UnrolledPath(torch.autograd.Function):
    r"""z_t = m_t + (softplus(r_t) + least) e_t with [m_t, r_t] = k_t + tanh(z_{t-1} W^T + b) A, one step after another.

    Torch would note some twelve operations a step, and add up the gradients of the weights step by step; by hand these
    are one product over all steps. All is laid out with time in front: (T, M, ...).
    """

    @staticmethod
    def forward(ctx: Any, known: Tensor, start: Tensor, W: Tensor, b: Tensor, A: Tensor, noise: Tensor) -> Tensor:
        """Paths (T, M, D), from known (T, M, 2 D), start (M, D), W (H, D), b (H), A (H, 2 D), noise (T, M, D)."""
        num_steps, rows, dim = noise.shape
        units = known.new_empty(num_steps, rows, len(W))
        params = known.new_empty(known.shape)
        scales = known.new_empty(noise.shape)
        path = known.new_empty(noise.shape)
        before, turned = start, W.mT
        each = zip(known, units, params, params[..., :dim], params[..., dim:], scales, noise, path, strict=True)
        for k, u, p, loc, raw, scale, e, z in each:
            torch.addmm(b, before, turned, out=u).tanh_()
            torch.addmm(k, u, A, out=p)
            torch.add(softplus(raw), LEAST_SCALE, out=scale)
            torch.addcmul(loc, scale, e, out=z)
            before = z
        ctx.save_for_backward(start, W, A, noise, units, params, path)
        return path

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of all but the noise."""
        start, W, A, noise, units, params, path = ctx.saved_tensors
        dim = noise.shape[-1]
        by_scale = noise * params[..., dim:].sigmoid()
        by_unit = 1 - units.square()
        d_params, d_units = torch.empty_like(params), torch.empty_like(units)
        turned = A.mT
        carried = torch.zeros_like(start)
        each = zip(grad, by_scale, by_unit, d_params, d_params[..., :dim], d_params[..., dim:], d_units, strict=True)
        for g, s, v, d_p, d_loc, d_raw, d_u in reversed(list(each)):
            torch.add(g, carried, out=d_loc)
            torch.mul(d_loc, s, out=d_raw)
            torch.mm(d_p, turned, out=d_u).mul_(v)
            carried = d_u @ W
        before = torch.cat([start.unsqueeze(0), path[:-1]])
        flat = d_units.flatten(0, 1)
        d_W, d_A = flat.mT @ before.flatten(0, 1), units.flatten(0, 1).mT @ d_params.flatten(0, 1)
        return d_params, carried, d_W, flat.sum(0), d_A, None
