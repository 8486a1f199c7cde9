"""The two-sided form, for encoders: every token of a text attends to all of it. Differentiable, ``O(N)``."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lineahead.plugins.augmented_attention import feature_maps
from lineahead.plugins.augmented_attention.blend import blend
from lineahead.plugins.augmented_attention.linformer import LINFORMER, mixtures
from lineahead.plugins.augmented_attention.local_kernels import LOCAL_KERNELS
from lineahead.plugins.augmented_attention.parallel import with_previous
from lineahead.plugins.augmented_attention.schema import AttentionSettings
from lineahead.plugins.augmented_attention.step import normalised, unit, without_autocast


@without_autocast
def bidirectional(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alpha: Tensor,
    local_scale: Tensor,
    conv: Tensor,
    query_map: Tensor,
    key_map: Tensor,
    *,
    settings: AttentionSettings,
    scale: float,
    count: Tensor | None = None,
) -> Tensor:
    """Augmented attention without a causal mask: the causal definition with every token of the text visible.

    A key in the query's group (or less than `window` away on either side) and a sink are local; every other
    key is in the global sum, so that each key counts once, as in the causal form. (FLASH's own non-causal sum
    counts the query's group a second time.) Linformer's mixtures cannot leave a group out: they cover the
    whole text. The convolution reaches ``conv_taps - 1`` tokens to either side.

    Args:
        query: ``[B, H, N, D]``, after RoPE.
        key: ``[B, Hkv, N, D]``.
        value: ``[B, Hkv, N, Dv]``.
        alpha: ``[H]``.
        local_scale: ``[H]``.
        conv: ``[H, 2 taps - 1]``; ``conv[:, taps - 1 + t]`` weighs the value t tokens back (t < 0: ahead).
        query_map: ``[H, D, M]``; any tensor when the feature map has no weights; for Linformer F
            ``[Hkv, L, M]``, which mixes the values of up to L tokens.
        key_map: ``[Hkv, D, M]``; likewise; for Linformer E ``[Hkv, L, M]``.
        settings: the operator's settings.
        scale: multiplier of ``q . k``, in the local kernel (1 there under `local_norm`) and in maps of it.
        count: ``[B]`` int64, tokens of each row; what follows them is padding, which nothing reads. None
            when every row is full.

    Returns:
        ``[B, H, N, Dv]`` in query's dtype; rows of padding hold no meaning.

    Raises:
        InputError: when a text is longer than Linformer's mixtures.

    Source: You et al., 2024, arXiv:2406.07368, section 4, for encoders; Hua et al., 2022, arXiv:2202.10447.
    """
    dtype, compute = query.dtype, torch.promote_types(query.dtype, torch.float32)
    query, key = (normalised(x, settings).to(compute) for x in (query, key))
    text = _Text.of(query, key, settings, count)
    zero = torch.zeros((), dtype=compute, device=query.device)
    value = torch.where(text.valid[:, None, :, None], value.to(compute), zero)
    near, far, remote, total = zero, zero, zero, zero
    if settings.feature_map == LINFORMER:
        remote, total = mixtures(query, key, value, query_map, key_map, scale=scale, valid=text.valid)
        remote, total = text.split(remote), text.split(total)
    elif settings.has_state:
        phi = feature_maps.get(settings.feature_map).apply
        queries = text.split(phi(query, query_map.to(compute), scale))
        keys = text.split(phi(key, key_map.to(compute), scale))
        if text.reach:
            far = torch.where(text.visible & ~text.near, queries @ text.rows(keys).transpose(-1, -2), zero)
        keys = torch.where(text.summed, keys, zero)
        remote = queries @ text.elsewhere(keys.transpose(-1, -2) @ text.split(value))
        if settings.has_norm:
            total = queries @ text.elsewhere(keys.sum(-2)).unsqueeze(-1)
    if settings.local != "none":
        if settings.local_norm:
            query, key, scale = unit(query, settings.eps), unit(key, settings.eps), 1.0
        mask = text.visible & text.near
        scores = text.split(query) @ text.rows(text.split(key)).transpose(-1, -2) * scale
        near = torch.where(mask, LOCAL_KERNELS.named(settings.local).weigh(scores, mask), zero)
    rows = text.rows(text.split(value))
    output = blend(
        near, far, remote, total,
        local_scale=text.per_head(local_scale.to(compute)) if settings.local != "none" else zero,
        alpha=text.per_head(alpha.to(compute)) if settings.has_state else zero,
        filters=zero, attend=lambda weights: weights @ rows, settings=settings,
    )  # fmt: skip
    output = text.join(output)
    if settings.conv_taps:
        output = output + two_sided_conv(value, conv.to(compute), output.shape[1])
    return output.to(dtype)


def two_sided_conv(value: Tensor, conv: Tensor, heads: int) -> Tensor:
    """Depthwise convolution over time, one filter per head: ``[B, H, N, Dv]`` from ``[B, Hkv, N, Dv]``.

    Args:
        value: zero at padding.
        conv: ``[H, 2 taps - 1]`` as in :func:`bidirectional`.
        heads: H.
    """
    batch, shared, length, width = value.shape
    rows = value.repeat_interleave(heads // shared, 1).permute(0, 3, 1, 2).reshape(-1, heads, length)
    mixed = functional.conv1d(rows, conv.flip(-1).unsqueeze(1), padding=conv.shape[1] // 2, groups=heads)
    return mixed.reshape(batch, width, heads, length).permute(0, 2, 3, 1)


@dataclass(frozen=True, kw_only=True)
class _Text:
    """Texts cut into chunks of the window's size, and what each chunk's queries meet one by one.

    Attributes:
        shape: B, H, Hkv, N, chunks, size.
        reach: chunks to either side that a local window touches.
        sinks: sink rows of each chunk.
        valid: ``[B, N]`` bool, False at padding.
        visible: keys among the chunk's rows that are there, once each: ``[B, 1, 1, chunks, 1, rows]``.
        near: which of them are local, ``[chunks, size, rows]``.
        summed: keys in the global sum, ``[B, 1, 1, chunks, size, 1]``.
        everywhere: whether the global sum covers the query's own chunk.
    """

    shape: tuple[int, int, int, int, int, int]
    reach: int
    sinks: int
    valid: Tensor
    visible: Tensor
    near: Tensor
    summed: Tensor
    everywhere: bool

    @classmethod
    def of(cls, query: Tensor, key: Tensor, settings: AttentionSettings, count: Tensor | None) -> "_Text":
        """The layout of ``query [B, H, N, D]`` and ``key [B, Hkv, N, D]``."""
        (batch, heads, length, _), device = query.shape, query.device
        whole = settings.pattern == "none"
        size = length if whole else min(settings.window, length)
        chunks, reach = -(-length // size), 1 if settings.pattern == "sliding" else 0
        full = torch.full((batch,), length, device=device)
        valid = torch.arange(length, device=device) < (full if count is None else count.to(device))[:, None]
        start = torch.arange(chunks, device=device)[:, None, None] * size
        row = start + torch.arange(size, device=device)[:, None]
        column = start + torch.arange(-reach * size, (reach + 1) * size, device=device)
        real = functional.pad(valid, (0, chunks * size - length)).reshape(batch, 1, 1, chunks, size, 1)
        summed = real & (row >= settings.sinks)  # a sink is met as a sink, not as a neighbour
        visible, near = _around(summed, reach), (row - column).abs() < settings.window
        sinks = min(settings.sinks, length)
        if sinks:
            held = valid[:, None, None, None, :sinks, None].expand(-1, -1, -1, chunks, -1, -1)
            visible = torch.cat([visible, held], -2)
            near = torch.cat([near, near.new_ones(chunks, size, sinks)], -1)
        return cls(
            shape=(batch, heads, key.shape[1], length, chunks, size),
            reach=reach,
            sinks=sinks,
            valid=valid,
            visible=visible.transpose(-1, -2),
            near=near,
            summed=summed,
            everywhere=whole,
        )

    def split(self, x: Tensor) -> Tensor:
        """``[B, H', N, X]`` to ``[B, Hkv, H' / Hkv, chunks, size, X]``."""
        batch, _, shared, length, chunks, size = self.shape
        padded = functional.pad(x, (0, 0, 0, chunks * size - length))
        return padded.reshape(batch, shared, -1, chunks, size, x.shape[-1])

    def join(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`split` for query heads."""
        batch, heads, _, length, chunks, size = self.shape
        return x.reshape(batch, heads, chunks * size, x.shape[-1])[:, :, :length]

    def per_head(self, x: Tensor) -> Tensor:
        """``[H]`` to ``[Hkv, H / Hkv, 1, 1, 1]``."""
        return x.reshape(self.shape[2], -1, 1, 1, 1)

    def rows(self, x: Tensor) -> Tensor:
        """What each chunk's queries meet one by one: the chunks around, then the sinks."""
        around = _around(x, self.reach)
        if not self.sinks:
            return around
        sinks = x.flatten(-3, -2)[..., : self.sinks, :].unsqueeze(-3)
        return torch.cat([around, sinks.expand(*x.shape[:-2], -1, -1)], -2)

    def elsewhere(self, x: Tensor) -> Tensor:
        """Sum over the chunks that are not met one by one, by shifted scans from both ends: axis 3."""
        if self.everywhere:
            return x.sum(3, keepdim=True)
        return _before(x, self.reach) + _before(x.flip(3), self.reach).flip(3)


def _around(x: Tensor, reach: int) -> Tensor:
    """Each chunk with the `reach` before and after it: ``[..., chunks, (2 reach + 1) size, X]``."""
    if not reach:
        return x
    return with_previous(functional.pad(x, (0, 0, 0, 0, 0, reach)), 2 * reach)[..., reach:, :, :]


def _before(x: Tensor, reach: int) -> Tensor:
    """For each chunk the sum over those more than `reach` before it: a shifted scan over axis 3."""
    skipped = min(1 + reach, x.shape[3])
    nothing = torch.zeros_like(x.narrow(3, 0, skipped))
    return torch.cat([nothing, x.narrow(3, 0, x.shape[3] - skipped)], 3).cumsum(3)
