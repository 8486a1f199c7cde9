"""From the weights of the local and the global term to the output: normalizer, gains, convolution."""

from collections.abc import Callable

from torch import Tensor

from lineahead.plugins.augmented_attention.normalizers import NORMALIZERS
from lineahead.plugins.augmented_attention.schema import AttentionSettings


def blend(
    near: Tensor,
    far: Tensor,
    remote: Tensor,
    total: Tensor,
    *,
    local_scale: Tensor,
    alpha: Tensor,
    filters: Tensor,
    attend: Callable[[Tensor], Tensor],
    settings: AttentionSettings,
) -> Tensor:
    """Output rows of M keys that are met one by one and of the rest, which is in S.

    A term that the settings leave out is a zero without axes.

    Args:
        near: ``[..., N, M]``, weights of the local kernel, zero for keys that are not local.
        far: ``[..., N, M]``, weights of the feature map, zero for keys that are local or not visible.
        remote: ``[..., N, Dv]``, phi(q) S.
        total: ``[..., N, 1]``, phi(q) z.
        local_scale: broadcasts to `near`.
        alpha: broadcasts to `far`.
        filters: ``[..., N, M]``, weights of the convolution, outside every normalizer.
        attend: multiplies weights ``[..., N, M]`` by the values: ``[..., N, Dv]``.
        settings: the operator's settings.

    Returns:
        ``[..., N, Dv]``.
    """
    if settings.normalizer != "none" and not settings.divides:
        return _of_output(near, far, remote, local_scale, alpha, filters, attend, settings)
    if settings.divides and settings.normalizes == "local":
        local_scale = local_scale * _inverse(near.sum(-1, keepdim=True), settings)
    if settings.divides and settings.normalizes == "global":
        alpha = alpha * _inverse(far.sum(-1, keepdim=True) + total, settings)
    weights, remote = _times(near, local_scale) + _times(far, alpha), _times(remote, alpha)
    if settings.divides and settings.normalizes == "all":
        factor = _inverse(weights.sum(-1, keepdim=True) + _times(total, alpha), settings)
        weights, remote = _times(weights, factor), _times(remote, factor)
    return _rows(weights + filters, attend) + remote


def _of_output(
    near: Tensor,
    far: Tensor,
    remote: Tensor,
    local_scale: Tensor,
    alpha: Tensor,
    filters: Tensor,
    attend: Callable[[Tensor], Tensor],
    settings: AttentionSettings,
) -> Tensor:
    """Normalise rows by themselves; the rest of the weights, the convolution's among them, is added."""
    gain: Tensor | float = 1.0
    if settings.normalizes == "global":
        row, gain = _rows(far, attend) + remote, alpha
        rest = _rows(near * local_scale + filters, attend)
    elif settings.normalizes == "local":
        row, gain = _rows(near, attend), local_scale
        rest = _rows(_times(far, alpha) + filters, attend) + remote * alpha
    else:
        row = _rows(_times(near, local_scale) + _times(far, alpha), attend) + _times(remote, alpha)
        rest = _rows(filters, attend)
    return row * (NORMALIZERS.named(settings.normalizer).factor(row, settings.eps) * gain) + rest


def _inverse(total: Tensor, settings: AttentionSettings) -> Tensor:
    if settings.floor:
        total = total.clamp(min=settings.floor)
    return NORMALIZERS.named(settings.normalizer).factor(total, settings.eps)


def _times(term: Tensor, gain: Tensor) -> Tensor:
    return term * gain if term.ndim else term


def _rows(weights: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
    return attend(weights) if weights.ndim else weights
