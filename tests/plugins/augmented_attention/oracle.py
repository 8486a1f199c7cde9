"""A second oracle: the definition as one quadratic matrix per head, in NumPy float64, over any tree.

It shares no code with the operator. A text is the tree in which every node's ancestors are all earlier nodes;
nothing here knows about steps, rings, commits or chunks.
"""

import numpy as np


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def performer(x, weight, scale):
    x = np.sqrt(scale) * x
    exponent = np.einsum("bhnd,hdm->bhnm", x, weight) - 0.5 * np.sum(x * x, -1, keepdims=True)
    return np.exp(np.minimum(np.maximum(exponent, -30), 30)) / np.sqrt(weight.shape[-1])


def rfa(x, weight, scale):
    angle = np.sqrt(scale) * np.einsum("bhnd,hdm->bhnm", x, weight)
    return np.concatenate([np.sin(angle), np.cos(angle)], -1) / np.sqrt(weight.shape[-1])


def hedgehog(x, weight, scale):
    projected = np.einsum("bhnd,hdm->bhnm", x, weight)
    return np.concatenate([softmax(projected), softmax(-projected)], -1)


FEATURE_MAPS = {  # x [B, H, N, D], weight [H, D, M], scale
    "identity": lambda x, weight, scale: x,
    "hedgehog": hedgehog,
    "relu": lambda x, weight, scale: np.maximum(x, 0),
    "elu1": lambda x, weight, scale: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))),
    "performer": performer,
    "rfa": rfa,
}


def shifted_exponential(scores, near):
    peak = np.where(near, scores, -np.inf).max(-1, keepdims=True)
    return np.exp(np.where(near, scores - peak, 0))


def collision(scores, near):
    return (1 - np.arccos(np.clip(scores, -1 + 1e-6, 1 - 1e-6)) / np.pi) ** 8


LOCAL_KERNELS = {  # scores, and which of them count
    "relu2": lambda scores, near: np.maximum(scores, 0) ** 2,
    "softmax": shifted_exponential,
    "softmax_cap50": lambda scores, near: shifted_exponential(50 * np.tanh(scores / 50), near),
    "yoso": collision,
}
NORMALIZERS = {  # row [..., Dv], its weights' sum [..., 1], eps
    "none": lambda row, total, eps: row,
    "denominator": lambda row, total, eps: row / (total + eps),
    "rms": lambda row, total, eps: row / np.sqrt(np.mean(row * row, -1, keepdims=True) + eps),
    "l2": lambda row, total, eps: row / np.sqrt(np.sum(row * row, -1, keepdims=True) + eps),
}


def unit(x, eps):
    return x / np.sqrt(np.sum(x * x, -1, keepdims=True) + eps)


def normalise(x, settings):
    return unit(x, settings.eps) if settings.qk_norm else x


def is_near(settings, query_position, key_position):
    sink = np.broadcast_arrays(key_position < settings.sinks, query_position)[0]
    if settings.pattern == "grouped":
        return sink | (query_position // settings.window == key_position // settings.window)
    if settings.pattern == "sliding":
        return sink | (np.abs(key_position - query_position) < settings.window)
    return sink


def define(query, key, value, parameters, settings, scale, depth=None, ancestors=None):
    """Outputs ``[B, H, N, Dv]`` of the nodes of a tree; a chain when `ancestors` is None.

    Args:
        query, key, value: ``[B, H, N, D]``, ``[B, Hkv, N, D]``, ``[B, Hkv, N, Dv]`` NumPy float64.
        parameters: alpha, local_scale, conv, query_map, key_map as arrays.
        settings: anything with the operator's settings as attributes.
        scale: multiplier of the scores.
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
    local, remote = np.zeros(near.shape), np.zeros(near.shape)
    normalizer, scope = settings.normalizer, settings.normalizes
    if settings.local != "none":
        one, other = (unit(x, settings.eps) if settings.local_norm else x for x in (query, key))
        scores = np.einsum("bhid,bhjd->bhij", one, other) * (1 if settings.local_norm else scale)
        local = np.where(near, LOCAL_KERNELS[settings.local](scores, near), 0)
    if settings.feature_map == "linformer":
        mixed = np.einsum("bhjd,hjm->bhmd", key, key_map[:, :nodes])
        weights = softmax(scale * np.einsum("bhid,bhmd->bhim", query, mixed))
        remote = np.einsum("bhim,hjm->bhij", weights, query_map[spread][:, :nodes])
        alpha = np.ones_like(alpha) if settings.normalizes == "all" else alpha
        normalizer, scope = "none", "all"
    elif settings.feature_map != "none":
        phi = FEATURE_MAPS[settings.feature_map]
        far = np.einsum("bhif,bhjf->bhij", phi(query, query_map, scale), phi(key, key_map, scale))
        remote = np.where(ancestors[:, None] & ~near, far, 0)

    def row(weights, normalised):
        output = np.einsum("bhij,bhjd->bhid", weights, value)
        if not normalised:
            return output
        total = weights.sum(-1, keepdims=True)
        if settings.feature_map == "rfa" and (settings.normalizes == "global" or settings.local == "none"):
            total = np.maximum(total, np.exp(-2))
        return NORMALIZERS[normalizer](output, total, settings.eps)

    alpha, local_scale = alpha[:, None, None], local_scale[:, None, None]
    if scope == "all":
        output = row(local_scale * local + alpha * remote, True)
    else:
        output = local_scale * row(local, scope == "local")
        output = output + alpha * row(remote, scope == "global")
    weights = np.zeros(near.shape)
    ahead = 0 if settings.causal else settings.conv_taps - 1
    for t in range(-ahead, settings.conv_taps):
        weights = (
            weights + np.where((lag == t) & ancestors, 1, 0)[:, None] * conv[:, ahead + t][:, None, None]
        )
    return output + row(weights, False)


def define_state(key, value, key_map, settings, length, scale):
    """(state, norm) after `length` tokens of one text: key ``[Hkv, N, D]``."""
    first = {
        "grouped": length - length % settings.window,
        "sliding": max(0, length - settings.window + 1),
        "none": length,
    }[settings.pattern]
    kept = slice(settings.sinks, max(first, settings.sinks))
    features = FEATURE_MAPS[settings.feature_map](key[None, :, kept], key_map, scale)[0]
    return np.einsum("hnf,hnd->hfd", features, value[:, kept]), features.sum(1)
