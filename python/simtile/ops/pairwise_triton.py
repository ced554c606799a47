"""Losses over all pairs on a GPU: launches of the kernels in `kernels/pairwise/triton.py`, and in
torch what is one number or one row for each row. Nothing here waits for the device."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from simtile.kernels.pairwise import triton as kernels
from simtile.kernels.pairwise import triton_configs as configs
from simtile.kernels.pairwise.triton_configs import Tile
from simtile.ops._triton_device import INTERPRETED, family, on

SMALLEST_NORM = 1e-12
_NONE = 2**31 - 1  # NO_ROW of the kernels


class Operand(NamedTuple):
    """Rows as the products take them, u_i = rows_i * factor_i."""

    rows: Tensor  # [N, D], scaled by powers of two
    factor: Tensor  # float64 [N]; NaN of rows that are not finite
    square: Tensor  # float64 [N]: |u_i|^2
    unit: Tensor  # float64 [N]: u_i = x_i * unit_i


def _power(exponent: Tensor) -> Tensor:
    """2^-exponent, within what float32 can hold."""
    return torch.ldexp(torch.ones_like(exponent, dtype=torch.float64), -exponent.clamp(-126, 126))


def operand(x: Tensor, normalize: bool, common_scale: bool) -> Operand:
    """The rows of x, with one power of two for all if they are compared as they are."""
    norm = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
    finite = norm.isfinite()
    if normalize:
        scale = torch.where(finite & (norm > 0), _power(torch.frexp(norm).exponent), 1.0)
        unit = 1.0 / norm.clamp(min=SMALLEST_NORM)
    elif common_scale:
        largest = torch.where(finite, norm, 0.0).amax()
        is_extreme = ((largest < 2.0**-40) | (largest > 2.0**40)) & (largest > 0)
        scale = torch.where(is_extreme, _power(torch.frexp(largest).exponent), 1.0).expand_as(norm)
        unit = scale  # distances are compared in these units
    else:
        scale, unit = torch.ones_like(norm), torch.ones_like(norm)
    rows = x.contiguous()
    if x.dtype != torch.float16 or normalize:
        rows = (x.float() * scale.float()[:, None]).to(x.dtype)
    else:
        unit = unit / scale
        scale = torch.ones_like(scale)
    factor = torch.where(finite, unit / scale, torch.nan)
    factor = torch.where(norm > 0, factor, norm)  # 0 of zeros, whose unit no float16 could hold
    square = torch.where(finite, (norm * unit).square(), torch.nan)
    return Operand(rows, factor, square, unit)


def _tile(kernel: str, x: Tensor, tiles: Tile | None) -> Tile:
    if tiles is not None:
        return tiles
    return configs.tile(kernel, str(x.dtype).removeprefix("torch."), family(x.device))


def _options(tile: Tile, *, gradients: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {
        "BM": tile.m,
        "BN": tile.n,
        "BK": tile.k,
        "PRECISION": "ieee",
        "EMULATE": INTERPRETED,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }
    return found | ({"BD": tile.d} if gradients else {})


def hardest(
    x: Tensor, labels: Tensor, metric: str, normalize: bool, tiles: Tile | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Positives and negatives, int64 [N] with -1 for none, and both distances, float64 [2, N]:
    squared if Euclidean, NaN where there is none."""
    n, dim = x.shape
    is_cosine = metric == "cosine"
    normalize = normalize or is_cosine
    of = operand(x, normalize, True)
    half = of.square * (0.0 if is_cosine else 0.5)
    tile = _tile("hardest", x, tiles)
    # Each on its own, so that both are aligned.
    found = [torch.empty(n, dtype=torch.int32, device=x.device) for _ in range(2)]
    with on(x.device):
        kernels.hardest[(triton.cdiv(n, tile.m),)](
            of.rows,
            of.rows.stride(0),
            of.factor.float(),
            half.float(),
            labels.to(torch.int64).contiguous(),
            *found,
            n,
            dim,
            **_options(tile),
        )
    chosen = [torch.where(rows == _NONE, -1, rows.long()) for rows in found]
    u = x.double()
    if normalize:
        u = u * of.unit[:, None]
    finite = of.factor.isfinite()
    distances = []
    for j in chosen:
        other = j.clamp(0, n - 1)
        d = 1.0 - (u * u[other]).sum(1) if is_cosine else (u - u[other]).square().sum(1)
        distances.append(torch.where((j >= 0) & finite & finite[other], d, torch.nan))
    return chosen[0], chosen[1], torch.stack(distances)


def batch_hard_triplet(
    x: Tensor,
    labels: Tensor,
    margin: float,
    metric: str,
    normalize: bool,
    skip_missing: bool,
    need_grad: bool,
    tiles: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """simtile::batch_hard_triplet; as `_pairwise.batch_hard_weights` does for arrays."""
    positive, negative, distances = hardest(x, labels, metric, normalize, tiles)
    has = torch.stack((positive, negative)) >= 0
    if metric == "euclidean":
        distances = distances.sqrt()
        factors = torch.where(distances == 0, 0.0, 1.0 / distances)
    else:
        factors = torch.full_like(distances, 2.0 if metric == "squared_euclidean" else 1.0)
        factors = torch.where(distances.isnan(), torch.nan, factors)
    raw = torch.where(has[0], distances[0], 0.0) - distances[1] + margin
    raw = torch.where(has[1], raw, margin)
    counted = has[0] & has[1] if skip_missing else torch.ones_like(has[0])
    active = counted & ~(raw < 0)  # NaN counts
    weight = 1.0 / counted.sum().clamp(min=1).double()
    loss = (torch.where(active, raw, 0.0).sum() * weight).float()
    if not need_grad:
        return loss, x.new_empty(0, dtype=torch.float32)
    pulls = torch.where(active & has[1], weight, 0.0)
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64, device="cpu").to(x.device)
    coefficients = torch.where((pulls > 0) & has, pulls * factors * signs[:, None], 0.0)
    return loss, gather(x, positive, negative, coefficients, metric, normalize)


def gather(
    x: Tensor,
    positive: Tensor,
    negative: Tensor,
    coefficients: Tensor,  # float64 [2, N]
    metric: str,
    normalize: bool,
) -> Tensor:
    """Gradients of the chosen pairs, float32 [N, D]; as the CPU's pair_gradients."""
    n, dim = x.shape
    is_cosine = metric == "cosine"
    normalize = normalize or is_cosine
    norm = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
    unit = 1.0 / norm.clamp(min=SMALLEST_NORM) if normalize else torch.ones_like(norm)
    chosen = torch.stack((positive, negative), 1).reshape(-1)
    weights = coefficients.T.reshape(-1).contiguous()
    chosen = torch.where(weights != 0, chosen, n)  # behind all others
    keys, chosen_by = torch.sort(chosen, stable=True)
    starts = torch.searchsorted(keys, torch.arange(n + 1, device=x.device))
    rows = x.contiguous()
    grad = torch.empty((n, dim), dtype=torch.float64, device=x.device)
    with on(x.device):
        kernels.gather_chosen[(n, triton.cdiv(dim, configs.GATHER))](
            rows,
            rows.stride(0),
            unit,
            positive,
            negative,
            weights,
            chosen_by,
            starts,
            grad,
            n,
            dim,
            COSINE=is_cosine,
            BLOCK=configs.GATHER,
            num_warps=configs.GATHER_WARPS,
        )
    return (_through_unit(x, grad, norm) if normalize else grad).float()


def _through_unit(x: Tensor, grad: Tensor, norm: Tensor) -> Tensor:
    """From the gradient with respect to x / max(|x|, 1e-12), float64, to that of x."""
    unit = (1.0 / norm.clamp(min=SMALLEST_NORM))[:, None]
    u = x.double() * unit
    along = torch.where(norm[:, None] <= SMALLEST_NORM, 0.0, (u * grad).sum(1, keepdim=True))
    return (grad - u * along) * unit


def uniformity(
    x: Tensor, t: float, normalize: bool, need_grad: bool, tiles: Tile | None = None
) -> tuple[Tensor, Tensor]:
    """simtile::uniformity."""
    n, dim = x.shape
    tile = _tile("exponent_sums", x, tiles)
    product = _tile("potential_gradients", x, tiles)
    of = operand(x, normalize, False)
    factor, square = of.factor.float(), of.square.float()
    maxima, totals = (torch.empty(n, dtype=torch.float32, device=x.device) for _ in range(2))
    with on(x.device):
        kernels.exponent_sums[(triton.cdiv(n, tile.m),)](
            of.rows,
            of.rows.stride(0),
            factor,
            square,
            maxima,
            totals,
            n,
            dim,
            t,
            **_options(tile),
        )
    peak = maxima.double().amax()
    peak = torch.where(peak == -torch.inf, 0.0, peak)
    shares = torch.exp(maxima.double() - peak)
    total = (totals.double() * shares).sum()
    value = (peak + torch.log(total / (n * (n - 1)))).float()
    if not need_grad:
        return value, x.new_empty(0, dtype=torch.float32)
    weighted = torch.empty((n, dim), dtype=torch.float32, device=x.device)
    with on(x.device):
        kernels.potential_gradients[(triton.cdiv(n, product.m), triton.cdiv(dim, product.d))](
            of.rows,
            of.rows.stride(0),
            factor,
            square,
            maxima,
            weighted,
            n,
            dim,
            t,
            **_options(product, gradients=True),
        )
    own = x.double() * (of.unit * totals.double())[:, None]
    grad = (own - weighted.double()) * (shares * (-4.0 * t / total))[:, None]
    if normalize:
        norm = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
        grad = _through_unit(x, grad, norm)
    return value, grad.float()
