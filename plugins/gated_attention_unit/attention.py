"""Mixed-chunk attention: quadratic within groups, linear between them, from any state onwards."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Heads(NamedTuple):
    """The four cheap views of the shared base, each ``[B, T, K]``."""

    local_query: Tensor
    local_key: Tensor
    far_query: Tensor
    far_key: Tensor


@dataclass(frozen=True, kw_only=True)
class GroupState:
    """What a layer remembers of the tokens so far: constant size.

    Attributes:
        total: ``[B, K, E]`` float32, the sum of far_key value^T over closed groups.
        local_key: ``[B, R, K]``, of the open group, R < G.
        far_key: ``[B, R, K]``.
        value: ``[B, R, E]``.
        recent: ``[B, taps - 1, E]``, the last values that the convolution looks back at; None without one.
    """

    total: Tensor
    local_key: Tensor
    far_key: Tensor
    value: Tensor
    recent: Tensor | None = None

    @classmethod
    def empty(cls, key: Tensor, value: Tensor) -> "GroupState":
        """Before the first token; shapes and types from ``key [B, T, K]`` and ``value [B, T, E]``."""
        total = key.new_zeros(key.shape[0], key.shape[2], value.shape[2], dtype=torch.float32)
        return cls(total=total, local_key=key[:, :0], far_key=key[:, :0], value=value[:, :0])


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Which terms attention has, and their weights.

    Attributes:
        local: the one within groups.
        far: weight of the one between groups, a number or a tensor of no axes; 0.0 for none.
        taps: ``[taps]`` of the causal convolution of the values, the newest first; None for none.
    """

    local: bool = True
    far: Tensor | float = 1.0
    taps: Tensor | None = None


FLASH = Terms()


def laplace(x: Tensor) -> Tensor:
    """A smooth stand-in for ``relu(x)**2`` with bounded slope.

    Source: Ma et al., 2022, arXiv:2209.10655, eq. 16: mean sqrt(1/2), deviation sqrt(1 / (4 pi)).
    """
    return 0.5 * (1 + torch.erf((x - math.sqrt(0.5)) / math.sqrt(0.5 / math.pi)))


def mixed_chunk(
    heads: Heads, value: Tensor, bias: Tensor, state: GroupState, group: int, terms: Terms = FLASH
) -> tuple[Tensor, GroupState]:
    r"""Attend from T tokens that follow those in `state`.

    With g(i) the group of position i::

        out_i = sum_{j <= i, g(j) = g(i)} laplace(q_i . k_j / G + bias_{i - j}) v_j
                + far * far_q_i . sum_{g(j) < g(i)} far_k_j v_j^T / G + sum_t taps_t v_{i - t}

    Args:
        heads: after their scale, offset and rotation.
        value: ``[B, T, E]``.
        bias: ``[G]``, by distance.
        state: of the tokens before.
        group: G.
        terms: all but the convolution for FLASH itself.

    Returns:
        ``[B, T, E]`` in value's dtype, and the state after these tokens.

    Source: Hua et al., 2022, arXiv:2202.10447, section 3.2; the weight and the convolution: You et al., 2024,
    arXiv:2406.07368, section 4.
    """
    tokens, before = value.shape[1], state.value.shape[1]  # the open group's rows begin at a boundary
    local_key, far_key = (
        torch.cat([state.local_key, heads.local_key], 1),
        torch.cat([state.far_key, heads.far_key], 1),
    )
    values = torch.cat([state.value, value], 1)
    rows = before + tokens
    padding = -rows % group

    def grouped(x: Tensor, first: int = 0) -> Tensor:  # [B, N, X] -> [B, N / G, G, X]
        padded = torch.nn.functional.pad(x.float(), (0, 0, first, padding))
        return padded.reshape(x.shape[0], -1, group, x.shape[2])

    distance = torch.arange(group, device=value.device)
    distance = distance[:, None] - distance
    scores = grouped(heads.local_query, before) @ grouped(local_key).transpose(2, 3) / group
    weights = laplace(scores + bias.float()[distance.clamp(min=0)])
    weights = torch.where(distance >= 0, weights, 0.0)
    each = grouped(far_key).transpose(2, 3) @ grouped(values) / group  # [B, N / G, K, E]
    sums = torch.cat([state.total[:, None], each], 1).cumsum(1)
    output = value.new_zeros((), dtype=torch.float32)
    if terms.local:
        output = output + weights @ grouped(values)
    if not isinstance(terms.far, float) or terms.far:
        output = output + terms.far * (grouped(heads.far_query, before) @ sums[:, :-1])
    flat = output.flatten(1, 2)[:, before:rows]
    if terms.taps is not None:
        convolved, recent = _convolve(value, terms.taps, state.recent)
        flat = flat + convolved
    closed = rows // group
    after = GroupState(
        total=sums[:, closed],
        local_key=local_key[:, closed * group :],
        far_key=far_key[:, closed * group :],
        value=values[:, closed * group :],
        recent=None if terms.taps is None else recent,
    )
    return flat.to(value.dtype), after


def _convolve(value: Tensor, taps: Tensor, recent: Tensor | None) -> tuple[Tensor, Tensor]:
    """The causal convolution ``[B, T, E]`` float32 of values, and the last of them."""
    back = len(taps) - 1
    past = value.new_zeros(value.shape[0], back, value.shape[2]) if recent is None else recent
    rows = torch.cat([past, value], 1)
    lines = rows.float().transpose(1, 2).flatten(0, 1)[:, None]  # [B E, 1, taps - 1 + T]
    convolved = torch.nn.functional.conv1d(lines, taps.float().flip(0)[None, None])
    return convolved.view(value.shape[0], value.shape[2], -1).transpose(1, 2), rows[:, len(rows[0]) - back :]


def distance_buckets(group: int, buckets: int, farthest: int) -> Tensor:
    """Bucket of each distance below `group`: one each for half of them, then logarithmically wider.

    Source: Raffel et al., 2020, arXiv:1910.10683, section 2.1.
    """
    exact = buckets // 2
    distance = torch.arange(group)
    scale = (buckets - exact) / math.log(max(farthest, exact + 1) / exact)
    wide = exact + ((distance.clamp(min=exact).float() / exact).log() * scale).long()
    return torch.where(distance < exact, distance, wide.clamp(max=buckets - 1))
