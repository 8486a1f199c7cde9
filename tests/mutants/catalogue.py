"""Defects that an implementation of the operator could have, each as one edit of its source."""

# A table: each row quotes one line of source and its damaged form.
# ruff: noqa: E501

from mutant_damage import Mutant

STEP, MASKS, SCHEMA, PARALLEL = "step.py", "masks.py", "schema.py", "parallel.py"
REFERENCE, MODULE, HEDGEHOG = "reference.py", "module.py", "feature_maps/hedgehog.py"
IDENTITY, BLEND = "feature_maps/identity.py", "blend.py"


def _mutants(file, *rows):
    return [Mutant(name=row[0], file=file, old=row[1], new=row[2], **dict(row[3:])) for row in rows]


CRASHES = ("crashes", True)


NAMED = [
    *_mutants(
        STEP,
        (
            "state kept in bf16",
            "    return state, norm, pick(keys, source)",
            "    state = state.bfloat16().to(state.dtype)\n    return state, norm, pick(keys, source)",
        ),
        ("commit off by one row", "torch.where(arrived >= 0, arrived + rows,", "torch.where(arrived >= 1, arrived + rows - 1,"),
        (
            "commit takes the row after the accepted one",
            "keys = torch.cat([window_key, pick(pending_key, accept_index)], 2)",
            "keys = torch.cat([window_key, pick(pending_key, (accept_index + 1).clamp(max=pending_key.shape[2] - 1))], 2)",
        ),
        (
            "group boundary ignored in the tree mask",
            "    near = is_local(settings, position[:, :, None], key_position[:, None, :])",
            "    near = is_local(settings, position[:, :, None], key_position[:, None, :])\n"
            "    near = torch.cat([near[:, :, : held.shape[1]], torch.ones_like(ancestors)], 2)",
        ),
        (
            "earlier groups of the tree forgotten",
            "far = torch.where((visible & ~near)[:, None], far, zero)",
            "far = far * 0",
        ),
        (
            "conv over rows instead of ancestors",
            "    held = key_position[:, :rows] >= 0\n",
            "    held = key_position[:, :rows] >= 0\n"
            "    row = torch.arange(nodes)\n"
            "    lag = torch.cat([lag[:, :, :rows], (row[:, None] - row).abs().expand(lag.shape[0], -1, -1)], 2)\n",
        ),
        (
            "conv over every row above",
            "on_path = torch.cat([held[:, None].expand(-1, nodes, -1), ancestors], 2)",
            "on_path = torch.cat([held[:, None].expand(-1, nodes, -1), torch.ones_like(ancestors)], 2)\n"
            "    lag = torch.where(lag < 0, taps, lag)",
        ),
    ),
    *_mutants(
        MASKS,
        ("position of a node is its row", "return ancestors.sum(-1) - 1", "return torch.arange(ancestors.shape[1]).expand(ancestors.shape[:2])"),
        (
            "one group for all",
            "near = (query_position // settings.window) == (key_position.clamp(min=0) // settings.window)",
            "near = (query_position - key_position) >= 0",
        ),
    ),
]  # fmt: skip

OTHERS = [
    *_mutants(
        MASKS,
        ("window one wider", "near = query_position - key_position < settings.window", "near = query_position - key_position <= settings.window"),
        ("window one narrower", "near = query_position - key_position < settings.window", "near = query_position - key_position < settings.window - 1"),
        ("ring slot off by one", "behind = last - torch.arange", "behind = last + 1 - torch.arange"),
        ("depth one too large", "return ancestors.sum(-1) - 1", "return ancestors.sum(-1)"),
        ("one sink more is local", "near | (key_position < settings.sinks)", "near | (key_position <= settings.sinks)"),
        ("sinks not local for ever", "return near | (key_position < settings.sinks) if settings.sinks else near", "return near"),
        ("sinks attended twice", "torch.where(in_ring, first.clamp(min=settings.sinks), 0)", "torch.where(in_ring, first, 0)"),
        ("sinks that have not arrived", "torch.where(sink < length[:, None], sink, -1)", "torch.where(sink <= length[:, None], sink, -1)", CRASHES),
        ("empty rows attended", "        return held >= first\n", "        return held >= first - 1\n"),
    ),
    *_mutants(
        SCHEMA,
        ("folds a group too early", "return length // settings.window * settings.window", "return (length + 1) // settings.window * settings.window"),
        ("folds a group too late", "return length // settings.window * settings.window", "return (length - 1) // settings.window * settings.window"),
        ("slides one too far", "first = length - settings.window + 1", "first = length - settings.window + 2"),
        ("slides one too little", "first = length - settings.window + 1", "first = length - settings.window"),
        ("conv reaches past the ring", "return max(local, self.conv_taps - 1, 1)", "return max(local, 1)"),
        ("norm forgotten", 'return self.has_state and self.divides and self.normalizes != "local"', "return False"),
    ),
    *_mutants(
        STEP,
        ("S from unrounded-down features", "features = phi(pick(keys, row).to(state.dtype), key_map.to(state.dtype), scale)", "features = phi(pick(keys, row), key_map.to(keys.dtype), scale).to(state.dtype)"),
        ("products of the fold in bf16", "state = state + features.transpose(2, 3) @ torch.where(fold, pick(values, row).to(state.dtype), zero)", "state = state + (features.transpose(2, 3).bfloat16() @ torch.where(fold, pick(values, row).to(state.dtype), zero).bfloat16()).to(state.dtype)"),
        ("norm in bf16", "norm = norm + features.sum(2)", "norm = (norm + features.sum(2)).bfloat16().to(norm.dtype)"),
        ("norm not folded", "norm = norm + features.sum(2)", "norm = norm + 0"),
        ("state written in place", "state = state + features.transpose(2, 3) @", "state += features.transpose(2, 3) @"),
        ("norm written in place", "norm = norm + features.sum(2)", "norm += features.sum(2)"),
        ("fold one early", "(position < last)", "(position <= last)"),
        ("fold one late", "(position < last)", "(position < last - 1)"),
        ("folds again what is in S", "position = first + torch.arange(most", "position = first - 1 + torch.arange(most"),
        ("first held row never folds", "position = first + torch.arange(most", "position = first + 1 + torch.arange(most"),
        ("folds the next ring row", "position % settings.ring_rows, waiting", "(position + 1) % settings.ring_rows, waiting"),
        ("folds the next pending row", "waiting = (rows + position", "waiting = (rows + 1 + position"),
        ("a full group less one row", "settings.window - 1 if", "settings.window - 2 if"),
        ("sinks fold into S", "& (position >= settings.sinks))", ")"),
        ("rejected rows enter the ring", "rows, total = settings.window_rows, length + accept_count", "rows, total = settings.window_rows, length + accept_index.shape[1]"),
        ("order of acceptance ignored", "values = torch.cat([window_value, pick(pending_value, accept_index)], 2)", "values = torch.cat([window_value, pick(pending_value, accept_index.sort(1).values)], 2)"),
        ("indices ignored: the first rows win", "pick(pending_key, accept_index)], 2)", "pick(pending_key, torch.arange(accept_index.shape[1]).expand_as(accept_index))], 2)"),
        ("values not committed", "return state, norm, pick(keys, source), pick(values, source)", "return state, norm, pick(keys, source), window_value"),
        ("length not advanced by the commit", "    length = length + accept_count\n", ""),
        ("queries not normalised", "query, key = normalised(query, settings), normalised(key, settings)", "key = normalised(key, settings)"),
        ("keys not normalised", "query, key = normalised(query, settings), normalised(key, settings)", "query = normalised(query, settings)"),
        ("pending keys not normalised", "return output.to(query.dtype), state, norm, window_key, window_value, key", "return output.to(query.dtype), state, norm, window_key, window_value, key * 1.001"),
        ("eps outside the root", "return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)", "return x / (x.square().sum(-1, keepdim=True).sqrt() + eps)"),
        ("no eps under the root", "x.square().sum(-1, keepdim=True) + eps", "x.square().sum(-1, keepdim=True)"),
        ("scale dropped", "keys.transpose(2, 3)) * scale", "keys.transpose(2, 3))"),
        ("rejected siblings attended", "attended[:, None].expand(-1, nodes, -1), ancestors], 2)", "attended[:, None].expand(-1, nodes, -1), torch.ones_like(ancestors)], 2)"),
        ("key heads interleaved", "return x.reshape(batch, shared, heads // shared * nodes, x.shape[-1])", "return x.reshape(batch, heads // shared, shared, nodes, -1).transpose(1, 2).reshape(batch, shared, -1, x.shape[-1])"),
        ("conv reversed", "table = torch.cat([conv.t(),", "table = torch.cat([conv.flip(1).t(),"),
        ("conv one tap late", "lag = torch.where(on_path, lag, taps)", "lag = torch.where(on_path, lag - 1, taps).remainder(taps + 1)"),
        ("conv reads sinks twice", "    if settings.sinks:\n        held = held &", "    if False:\n        held = held &"),
        ("conv before the text", "held = key_position[:, :rows] >= 0", "held = key_position[:, :rows] >= -9"),
        ("autocast reaches the sums", "        with torch.autocast(device, enabled=False):\n            return", "        if True:\n            return"),
        ("sums in the inputs' precision", "torch.promote_types(query.dtype, torch.float32)", "query.dtype", CRASHES),
        ("result in float32 whatever the inputs", "return output.to(query.dtype), state", "return output, state"),
    ),
    *_mutants(
        PARALLEL,
        ("parallel: window one wider", "near = row - column < size", "near = row - column <= size"),
        ("parallel: sees the next token", "visible = (column <= row) & (column >= sinks)", "visible = (column <= row + 1) & (column >= sinks)"),
        ("parallel: does not see itself", "visible = (column <= row) & (column >= sinks)", "visible = (column < row) & (column >= sinks)"),
        ("parallel: sinks twice", "visible = (column <= row) & (column >= sinks)", "visible = (column <= row) & (column >= 0)"),
        ("parallel: sinks seen from before", "visible = torch.cat([visible, sink <= row], -1)", "visible = torch.cat([visible, sink <= row + 1], -1)"),
        ("parallel: sinks in S", "            k_features = torch.where(kept, k_features, zero)\n", ""),
        ("parallel: the last chunk wraps round", "    shifted[:, :, :, : 1 + back] = 0\n", ""),
        ("parallel: S includes the own chunk", "shifted = torch.roll(x, 1 + back, 3).clone()\n    shifted[:, :, :, : 1 + back] = 0", "shifted = torch.roll(x, back, 3).clone()\n    shifted[:, :, :, :back] = 0"),
        ("parallel: S as a difference", "    return shifted.cumsum(3)", "    return shifted.cumsum(3) - shifted.flip(3) * 1e-7"),
        ("parallel: conv looks ahead", "torch.where((lag >= 0) & (lag < taps), lag, taps)", "torch.where((lag >= -1) & (lag < taps), lag.abs(), taps)"),
        ("parallel: conv stops at the chunk", "reach = -(-(settings.conv_taps - 1) // size)", "reach = (settings.conv_taps - 1) // size"),
        ("parallel: key heads interleaved", "return x.to(compute).reshape(shared, -1, 1, 1, 1)", "return x.to(compute).reshape(-1, shared, 1, 1, 1).transpose(0, 1)"),
        ("parallel: scale dropped", "dot(split(query), rows.mT, narrow=narrow) * scale", "dot(split(query), rows.mT, narrow=narrow)"),
        ("parallel: state without gradient", "dot(k_features.mT, v, narrow=narrow)", "dot(k_features.mT, v.detach(), narrow=narrow)"),
        ("parallel: keys without gradient", "query, key = normalised(query, settings), normalised(key, settings)", "query, key = normalised(query, settings), normalised(key, settings).detach()"),
        ("parallel: autocast reaches the sums", "@without_autocast\n", ""),
    ),
    *_mutants(
        REFERENCE,
        ("reference: key heads interleaved", "h * shared // heads", "h % shared", ("times", 3)),
        ("reference: window one wider", "abs(i - j) < settings.window", "abs(i - j) <= settings.window"),
        ("reference: conv reversed", "conv[ahead + t] * v[i - t]", "conv[-1 - ahead - t] * v[i - t]"),
        ("reference: eps outside the root", "(x.square().sum(-1, keepdim=True) + eps).sqrt()", "(x.square().sum(-1, keepdim=True).sqrt() + eps)"),
        ("reference: sinks as other keys", "    if j < settings.sinks:\n        return True\n", ""),
    ),
    *_mutants(
        MODULE,
        ("module: alpha is not a logarithm", "alpha = alpha.exp()", "alpha = alpha + 1"),
        ("module: scale kept under qk_norm", "return 1.0 if self.settings.qk_norm else attention_scale", "return attention_scale"),
        ("module: maps swapped", 'getattr(self, "query_map", one)', 'getattr(self, "key_map", one).repeat_interleave(self.shape.heads // self.shape.kv_heads, 0) if hasattr(self, "key_map") else one'),
        ("module: conv not used", 'getattr(self, "conv", one)', 'getattr(self, "conv", one).mul(0)'),
        ("module: local_scale not used", 'getattr(self, "local_scale", heads)', "heads"),
    ),
    *_mutants(
        HEDGEHOG,
        ("hedgehog: same half twice", "(-logits).softmax(-1)", "logits.softmax(-1)"),
        ("hedgehog: softmax over tokens", "logits.softmax(-1),", "logits.softmax(-2),"),
    ),
    *_mutants(
        STEP,
        ("step: map's scale dropped in the fold", "features = phi(pick(keys, row).to(state.dtype), key_map.to(state.dtype), scale)", "features = phi(pick(keys, row).to(state.dtype), key_map.to(state.dtype), 1.0)"),
        ("step: own group attended by the map", "(visible & ~near)[:, None], far, zero)", "visible[:, None], far, zero)"),
        ("step: local_norm of the keys alone", "unit(queries, settings.eps), unit(keys, settings.eps), 1.0", "queries, unit(keys, settings.eps), 1.0"),
        ("step: local_norm keeps the scale", "unit(queries, settings.eps), unit(keys, settings.eps), 1.0", "unit(queries, settings.eps), unit(keys, settings.eps), scale"),
        ("step: local_norm reaches the map", "    if settings.has_state:\n        phi = feature_maps.get(settings.feature_map).apply\n        query_features", "    if settings.has_state:\n        queries = unit(queries, settings.eps) if settings.local_norm else queries\n        phi = feature_maps.get(settings.feature_map).apply\n        query_features"),
    ),
    *_mutants(
        PARALLEL,
        ("parallel: local_norm keeps the scale", "unit(key, settings.eps), 1.0", "unit(key, settings.eps), scale"),
        ("parallel: no z", "total = dot(q_features, norm", "total = 0 * dot(q_features, norm"),
        ("parallel: map's scale dropped for keys", "split(phi(key, key_map.to(compute), scale))", "split(phi(key, key_map.to(compute), 1.0))"),
    ),
    *_mutants(
        BLEND,
        ("alpha applied twice", "_times(far, alpha), _times(remote, alpha)", "_times(far, alpha), _times(remote, alpha * alpha)"),
        ("alpha missing from S", "_times(far, alpha), _times(remote, alpha)", "_times(far, alpha), remote"),
        ("alpha missing from the ring", "_times(near, local_scale) + _times(far, alpha), _times(remote, alpha)", "_times(near, local_scale) + far, _times(remote, alpha)"),
        ("alpha missing from the denominator", "+ _times(total, alpha), settings)", "+ total, settings)"),
        ("z missing from the denominator", "+ _times(total, alpha), settings)", ", settings)"),
        ("z missing from the global denominator", "far.sum(-1, keepdim=True) + total, settings", "far.sum(-1, keepdim=True), settings"),
        ("ring missing from the global denominator", "far.sum(-1, keepdim=True) + total, settings", "far.sum(-1, keepdim=True) * 0 + total, settings"),
        ("S not divided", "_times(weights, factor), _times(remote, factor)", "_times(weights, factor), remote"),
        ("conv divided too", "_times(weights, factor), _times(remote, factor)", "_times(weights + filters, factor) - filters, _times(remote, factor)"),
        ("local_scale dropped", "_times(near, local_scale) + _times(far, alpha), _times(remote, alpha)", "near + _times(far, alpha), _times(remote, alpha)"),
        ("global scope taken for local", 'settings.divides and settings.normalizes == "global"', 'settings.divides and settings.normalizes == "never"'),
        ("local scope not divided", 'settings.divides and settings.normalizes == "local"', 'settings.divides and settings.normalizes == "never"'),
        ("floor ignored", "    if settings.floor:\n        total = total.clamp(min=settings.floor)\n", ""),
        ("output norm: gain forgotten", "factor(row, settings.eps) * gain)", "factor(row, settings.eps))"),
        ("output norm: conv inside", "_rows(_times(near, local_scale) + _times(far, alpha), attend) + _times(remote, alpha)", "_rows(_times(near, local_scale) + _times(far, alpha) + filters, attend) + _times(remote, alpha)"),
        ("output norm: S not in the row", "row, gain = _rows(far, attend) + remote, alpha", "row, gain = _rows(far, attend), alpha"),
        ("output norm: S forgotten beside the local row", "filters, attend) + remote * alpha", "filters, attend)"),
    ),
    *_mutants(
        "local_kernels/softmax.py",
        ("maximum over all keys", "peak = torch.where(mask, scores, lowest).amax", "peak = scores.amax"),
        ("maximum held constant", ".amax(-1, keepdim=True)", ".amax(-1, keepdim=True).detach()"),
    ),
    *_mutants(
        "local_kernels/relu2.py",
        ("relu not squared", "scores.relu().square()", "scores.relu()"),
        ("squared without relu", "scores.relu().square()", "scores.square()"),
    ),
    *_mutants(
        "local_kernels/yoso.py",
        ("yoso: seven hyperplanes", "HYPERPLANES = 8", "HYPERPLANES = 7"),
        ("yoso: wrong angle", "angle / math.pi", "angle / 3"),
    ),
    *_mutants(
        "normalizers/denominator.py",
        ("no eps in the denominator", "(total + eps)", "total"),
    ),
    *_mutants("normalizers/rms.py", ("rms: sum instead of mean", ".mean(-1, keepdim=True)", ".sum(-1, keepdim=True)")),
    *_mutants("normalizers/l2.py", ("l2: no eps", "+ eps).rsqrt()", ").rsqrt()"), ("l2: mean", ".sum(-1, keepdim=True)", ".mean(-1, keepdim=True)")),
    *_mutants("feature_maps/relu.py", ("relu map: signed", "x.relu()", "x")),
    *_mutants("feature_maps/elu1.py", ("elu1: without one", "(x + 1)", "x"), ("elu1: exp not bounded", "x.clamp(max=0).exp()", "(-x.abs()).exp() * 2")),
    *_mutants(
        "feature_maps/performer.py",
        ("performer: scale instead of its root", "x * math.sqrt(scale)", "x * scale"),
        ("performer: norm not halved", "keepdim=True) / 2", "keepdim=True)"),
        ("performer: not averaged", " / math.sqrt(weight.shape[-1])", ""),
    ),
    *_mutants("feature_maps/rfa.py", ("rfa: cosines alone", "angle.sin(), angle.cos()", "angle.cos(), angle.cos()"), ("rfa: no floor", "floor=math.exp(-2.0)", "floor=0.0"), ("rfa: scale instead of its root", "math.sqrt(scale)", "scale")),
    *_mutants(
        MODULE,
        ("module: random maps not shared", "query_map = key_map.repeat_interleave(self.shape.heads // self.shape.kv_heads, 0)", "query_map = key_map.flip(0).repeat_interleave(self.shape.heads // self.shape.kv_heads, 0)"),
        ("module: alpha always a logarithm", 'return self.settings.divides and self.settings.normalizes == "all"', "return self.settings.divides"),
    ),
    *_mutants(IDENTITY, ("identity: doubled", "apply=lambda x, weight, scale: x,", "apply=lambda x, weight, scale: 2 * x,")),
]  # fmt: skip
