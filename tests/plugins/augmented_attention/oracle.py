"""A second oracle: the definition as one quadratic matrix per head, in NumPy float64, over any tree.

It shares no code with the operator. A text is the tree in which every node's ancestors are all earlier nodes;
nothing here knows about steps, rings, commits or chunks.
"""

import numpy as np


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def phi(name, x, weight):
    """``x [B, H, N, D]``, ``weight [H, D, M]``."""
    if name == "identity":
        return x
    assert name == "hedgehog"
    projected = np.einsum("bhnd,hdm->bhnm", x, weight)
    return np.concatenate([softmax(projected), softmax(-projected)], -1)


def normalise(x, settings):
    return x / np.sqrt(np.sum(x * x, -1, keepdims=True) + settings.eps) if settings.qk_norm else x


def is_near(settings, query_position, key_position):
    sink = np.broadcast_arrays(key_position < settings.sinks, query_position)[0]
    if settings.pattern == "grouped":
        return sink | (query_position // settings.window == key_position // settings.window)
    if settings.pattern == "sliding":
        return sink | (key_position > query_position - settings.window)
    return sink


def define(query, key, value, parameters, settings, scale, depth=None, ancestors=None):
    """Outputs ``[B, H, N, Dv]`` of the nodes of a tree; a chain when `ancestors` is None.

    Args:
        query, key, value: ``[B, H, N, D]``, ``[B, Hkv, N, D]``, ``[B, Hkv, N, Dv]`` NumPy float64.
        parameters: alpha, local_scale, conv, query_map, key_map as arrays.
        settings: anything with the operator's settings as attributes.
        scale: multiplier of the local scores.
        depth: ``[B, N]`` positions; row numbers when None.
        ancestors: ``[B, N, N]`` bool, row i marks i and its ancestors.
    """
    alpha, local_scale, conv, query_map, key_map = parameters
    batch, heads, nodes, _ = query.shape
    if ancestors is None:
        ancestors = np.tril(np.ones((batch, nodes, nodes), bool))
        depth = np.arange(nodes)[None].repeat(batch, 0)
    query, key = normalise(query, settings), normalise(key, settings)
    share = heads // key.shape[1]
    spread = [h // share for h in range(heads)]
    key_map = key_map[spread] if key_map.ndim == 3 else key_map
    key, value = key[:, spread], value[:, spread]
    lag = depth[:, :, None] - depth[:, None, :]
    near = (is_near(settings, depth[:, :, None], depth[:, None, :]) & ancestors)[:, None]
    remote = ancestors[:, None] & ~near
    scores = scale * np.einsum("bhid,bhjd->bhij", query, key)
    weights = np.zeros_like(scores)
    if settings.local == "relu2":
        weights += np.where(near, local_scale[:, None, None] * np.maximum(scores, 0) ** 2, 0)
    if settings.local == "softmax":
        peak = np.where(near, scores, -np.inf).max(-1, keepdims=True)
        weights += np.where(near, local_scale[:, None, None] * np.exp(np.where(near, scores - peak, 0)), 0)
    if settings.feature_map != "none":
        far = np.einsum(
            "bhif,bhjf->bhij",
            phi(settings.feature_map, query, query_map),
            phi(settings.feature_map, key, key_map),
        )
        weights += np.where(remote, alpha[:, None, None] * far, 0)
    if settings.normalizer == "denominator":
        weights = weights / (weights.sum(-1, keepdims=True) + settings.eps)
    for t in range(settings.conv_taps):
        weights = weights + np.where((lag == t) & ancestors, 1, 0)[:, None] * conv[:, t][:, None, None]
    return np.einsum("bhij,bhjd->bhid", weights, value)


def define_state(key, value, key_map, settings, length):
    """(state, norm) after `length` tokens of one text: key ``[Hkv, N, D]``."""
    first = {
        "grouped": length - length % settings.window,
        "sliding": max(0, length - settings.window + 1),
        "none": length,
    }[settings.pattern]
    kept = slice(settings.sinks, max(first, settings.sinks))
    features = phi(settings.feature_map, key[None, :, kept], key_map)[0]
    return np.einsum("hnf,hnd->hfd", features, value[:, kept]), features.sum(1)
