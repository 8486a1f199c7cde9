"""Defects that an implementation of the operator could have, each as one edit of its source."""

# A table: each row quotes one line of source and its damaged form.
# ruff: noqa: E501

from mutant_damage import Mutant

STEP, MASKS, SCHEMA, PARALLEL = "step.py", "masks.py", "schema.py", "parallel.py"
REFERENCE, MODULE, HEDGEHOG = "reference.py", "module.py", "feature_maps/hedgehog.py"
IDENTITY = "feature_maps/identity.py"


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
            "weights = torch.where((visible & ~near)[:, None], far, zero)",
            "weights = zero",
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
        ("norm forgotten", 'return self.has_state and self.normalizer == "denominator"', "return False"),
    ),
    *_mutants(
        STEP,
        ("S from unrounded-down features", "features = feature_maps.get(settings.feature_map).apply(keys.to(state.dtype), key_map.to(state.dtype))", "features = feature_maps.get(settings.feature_map).apply(keys, key_map.to(keys.dtype)).to(state.dtype)"),
        ("products of the fold in bf16", "state = state + features.transpose(2, 3) @ torch.where(fold, values.to(state.dtype), zero)", "state = state + (features.transpose(2, 3).bfloat16() @ torch.where(fold, values.to(state.dtype), zero).bfloat16()).to(state.dtype)"),
        ("norm in bf16", "norm = norm + features.sum(2)", "norm = (norm + features.sum(2)).bfloat16().to(norm.dtype)"),
        ("norm not folded", "norm = norm + features.sum(2)", "norm = norm + 0"),
        ("state written in place", "state = state + features.transpose(2, 3) @", "state += features.transpose(2, 3) @"),
        ("norm written in place", "norm = norm + features.sum(2)", "norm += features.sum(2)"),
        ("fold one early", "(position < last)", "(position <= last)"),
        ("fold one late", "(position < last)", "(position < last - 1)"),
        ("folds again what is in S", "(held >= first), sink >= 0", "(held >= 0), sink >= 0"),
        ("first held row never folds", "(held >= first), sink >= 0", "(held > first), sink >= 0"),
        ("sinks fold into S", "& (position >= settings.sinks))", ")"),
        ("rejected rows enter the ring", "rows, total = settings.window_rows, length + accept_count", "rows, total = settings.window_rows, length + accept_index.shape[1]"),
        ("order of acceptance ignored", "values = torch.cat([window_value, pick(pending_value, accept_index)], 2)", "values = torch.cat([window_value, pick(pending_value, accept_index.sort(1).values)], 2)"),
        ("indices ignored: the first rows win", "pick(pending_key, accept_index)], 2)", "pick(pending_key, torch.arange(accept_index.shape[1]).expand_as(accept_index))], 2)"),
        ("values not committed", "return state, norm, pick(keys, source), pick(values, source)", "return state, norm, pick(keys, source), window_value"),
        ("length not advanced by the commit", "    length = length + accept_count\n", ""),
        ("queries not normalised", "query = unit(query.to(compute), settings.eps).to(query.dtype)", "query = query"),
        ("keys not normalised", "key = unit(key.to(compute), settings.eps).to(key.dtype)", "key = key"),
        ("pending keys not normalised", "return output.to(query.dtype), state, norm, window_key, window_value, key", "return output.to(query.dtype), state, norm, window_key, window_value, key * 1.001"),
        ("eps outside the root", "return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)", "return x / (x.square().sum(-1, keepdim=True).sqrt() + eps)"),
        ("no eps under the root", "x.square().sum(-1, keepdim=True) + eps", "x.square().sum(-1, keepdim=True)"),
        ("no eps in the denominator", "total = weights.sum(-1, keepdim=True) + settings.eps", "total = weights.sum(-1, keepdim=True)"),
        ("alpha applied twice", "remote = by_head(query_features @ state) * per_head(alpha)", "remote = by_head(query_features @ state) * per_head(alpha).square()"),
        ("alpha missing from S", "remote = by_head(query_features @ state) * per_head(alpha)", "remote = by_head(query_features @ state)"),
        ("alpha missing from the ring", ".transpose(2, 3)) * per_head(alpha)", ".transpose(2, 3))"),
        ("alpha missing from the denominator", "total + by_head(query_features @ norm.unsqueeze(-1)) * per_head(alpha)", "total + by_head(query_features @ norm.unsqueeze(-1))"),
        ("norm missing from the denominator", "total = total + by_head(query_features @ norm.unsqueeze(-1)) * per_head(alpha)", "pass"),
        ("S not divided", "weights, remote = weights / total, remote / total", "weights = weights / total"),
        ("conv divided too", '    if settings.normalizer == "denominator":\n        total', '    if settings.conv_taps and settings.normalizer == "denominator":\n        weights = weights + _filters(settings, position, key_position, ancestors, conv.to(compute))\n        conv = conv * 0\n    if settings.normalizer == "denominator":\n        total'),
        ("local_scale dropped", "local_kernel(scores, mask, settings) * per_head(local_scale)", "local_kernel(scores, mask, settings)"),
        ("scale dropped", "keys.transpose(2, 3)) * scale", "keys.transpose(2, 3))"),
        ("rejected siblings attended", "attended[:, None].expand(-1, nodes, -1), ancestors], 2)", "attended[:, None].expand(-1, nodes, -1), torch.ones_like(ancestors)], 2)"),
        ("key heads interleaved", "return x.reshape(batch, shared, heads // shared * nodes, x.shape[-1])", "return x.reshape(batch, heads // shared, shared, nodes, -1).transpose(1, 2).reshape(batch, shared, -1, x.shape[-1])"),
        ("maximum over all keys", "peak = torch.where(mask, scores, lowest).amax", "peak = scores.amax"),
        ("maximum held constant", ".amax(-1, keepdim=True)", ".amax(-1, keepdim=True).detach()"),
        ("relu not squared", "scores.relu().square()", "scores.relu()"),
        ("squared without relu", "scores.relu().square()", "scores.square()"),
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
        ("parallel: scale dropped", "k_near.transpose(-1, -2) * scale", "k_near.transpose(-1, -2)"),
        ("parallel: alpha missing from S", "(k_features.transpose(-1, -2) @ v, back) * per_head(alpha)", "(k_features.transpose(-1, -2) @ v, back)"),
        ("parallel: alpha missing from the ring", "back).transpose(-1, -2) * per_head(alpha)", "back).transpose(-1, -2)"),
        ("parallel: alpha missing from the denominator", "total = q_features @ norm * per_head(alpha)", "total = q_features @ norm"),
        ("parallel: no eps in the denominator", "(weights.sum(-1, keepdim=True) + total + settings.eps)", "(weights.sum(-1, keepdim=True) + total)"),
        ("parallel: state without gradient", "remote = q_features @ _earlier_chunks(k_features.transpose(-1, -2) @ v, back)", "remote = q_features @ _earlier_chunks(k_features.transpose(-1, -2) @ v.detach(), back)"),
        ("parallel: keys without gradient", "key = unit(key.to(compute), settings.eps).to(dtype)", "key = unit(key.to(compute), settings.eps).to(dtype).detach()"),
        ("parallel: autocast reaches the sums", "@without_autocast\n", ""),
    ),
    *_mutants(
        REFERENCE,
        ("reference: key heads interleaved", "h * shared // heads", "h % shared", ("times", 3)),
        ("reference: window one wider", "i - j < settings.window", "i - j <= settings.window"),
        ("reference: conv reversed", "conv[t] * v[i - t]", "conv[-1 - t] * v[i - t]"),
        ("reference: eps outside the root", "(x.square().sum(-1, keepdim=True) + settings.eps).sqrt()", "(x.square().sum(-1, keepdim=True).sqrt() + settings.eps)"),
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
    *_mutants(IDENTITY, ("identity: doubled", "apply=lambda x, weight: x,", "apply=lambda x, weight: 2 * x,")),
]  # fmt: skip
