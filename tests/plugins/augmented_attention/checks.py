"""What every form of the operator must satisfy, as functions of the forms under test.

The tests beside this file call them on the shipped forms; ``tests/mutants`` calls the same functions on
damaged copies and demands that some of them fail.
"""

from dataclasses import replace

import numpy as np
import torch
from operator_cases import (
    EXACT,
    HEADS,
    SCALE,
    SMALL,
    Case,
    Decoder,
    close,
    path_to,
    ragged,
    random_tree,
    relative,
    tree_definition,
)
from operator_oracle import define_state, normalise


def reference_is_definition(forms, name):
    case = Case(forms, forms.settings(name), tokens=21 if name in SMALL else 70, batch=1)
    close(case.refer(), case.define())


def parallel_is_definition(forms, name):
    settings = forms.settings(name)
    lengths = (
        (1, 7, 8, 9, 15, 16, 17, 25) if name in SMALL else (1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 193)
    )
    case = Case(forms, settings, tokens=max(lengths))
    want = case.define()
    for length in lengths:
        close(case.parallel(length), want[:, :, :length], what=f"{length} tokens")


def step_is_definition(forms, name):
    settings = forms.settings(name)
    tokens = 29 if name in SMALL else 131
    case = Case(forms, settings, tokens=tokens)
    want = case.define()
    edges = (1, 7, 8, 9, 16, 17, tokens) if name in SMALL else (31, 32, 63, 64, 65, 127, 128, 129, tokens)
    close(Decoder(case).chain([1] * tokens), want, what="token by token")
    close(Decoder(case).chain(np.diff([0, *edges])), want, what="chunked at the edges")
    for length in edges:
        close(Decoder(case).chain([length]), want[:, :, :length], what=f"prefill of {length}")
        if length < tokens:
            close(
                Decoder(case).chain([length, 1, tokens - length - 1]),
                want,
                what=f"prefill of {length}, then more",
            )


def tree_is_definition(forms, name, *, counts=None, nodes=9, seed=0, roots=1):
    """Every node of a random tree per batch row, after any context, equals the definition on its path."""
    settings = forms.settings(name)
    rng = np.random.default_rng(seed)
    if counts is None:
        counts = (
            list(range(2 * settings.window + 3)) if name in SMALL else [0, 1, 30, 31, 59, 60, 62, 63, 64, 125]
        )
    width = max(max(counts), 1)
    case = Case(forms, settings, tokens=width + nodes, batch=len(counts), seed=seed)
    trees = [random_tree(rng, nodes, roots=roots) for _ in counts]
    decoder, index, count = ragged(case, counts, width)
    ancestors = torch.from_numpy(np.stack([tree[1] for tree in trees]))
    got = decoder.step(*case.rows(width, width + nodes), ancestors, index, count)
    close(got, tree_definition(case, counts, width, trees), what="tree")


def tree_is_plain_decoding(forms, name):
    """Each node equals decoding its own path token by token from the same state; the tree writes nothing."""
    settings = forms.settings(name)
    rng = np.random.default_rng(3)
    for context in (0, 3, settings.window - 1, settings.window + 2):
        case = Case(forms, settings, tokens=context + 8, batch=1, seed=context)
        start = Decoder(case)
        if context:
            start.step(*case.rows(0, context))
        parents, ancestors, _ = random_tree(rng, 8)
        got = start.fork().step(*case.rows(context, context + 8), torch.from_numpy(ancestors)[None])
        for node in range(8):
            plain = start.fork()
            for row in path_to(parents, node):
                output = plain.step(*case.rows(context + row, context + row + 1))
            close(got[:, :, node : node + 1], output, what=f"node {node} after {context}")


def accept_and_reject(forms, name, *, rounds=14, seed=0, dtype=torch.float64, nodes=7):
    """Random trees, random accepted paths, padded indices; returns (decoder, accepted rows per text)."""
    settings = forms.settings(name)
    rng = np.random.default_rng(seed)
    batch, longest = 3, 4 * settings.window + 40
    case = Case(forms, settings, tokens=longest + rounds * nodes, batch=batch, dtype=dtype, seed=seed)
    prefix = [int(rng.integers(1, min(longest, 2 * settings.window + 2))) for _ in range(batch)]
    decoder, index, count = ragged(case, prefix, longest)
    kept = [list(range(n)) for n in prefix]
    for i in range(rounds):
        start = longest + i * nodes
        trees = [random_tree(rng, nodes, roots=int(rng.integers(1, 3))) for _ in range(batch)]
        ancestors = torch.from_numpy(np.stack([tree[1] for tree in trees]))
        decoder.step(*case.rows(start, start + nodes), ancestors, index, count)
        paths = [path_to(tree[0], int(rng.integers(0, nodes))) for tree in trees]
        paths = [path[: int(rng.integers(0, len(path) + 1))] for path in paths]  # may accept nothing
        padding = rng.integers(0, nodes, (batch, nodes))
        index = torch.tensor([[*path, *pad[len(path) :]] for path, pad in zip(paths, padding, strict=True)])
        count = torch.tensor([len(path) for path in paths])
        for rows, path in zip(kept, paths, strict=True):
            rows.extend(start + node for node in path)
    return decoder.settle(index, count), kept


def state_is_definition(forms, name, *, seed=0, dtype=torch.float64, tolerance=EXACT, rounds=14):
    """After random accepts and rejects the state is the definition's, of the accepted tokens alone."""
    decoder, kept = accept_and_reject(forms, name, seed=seed, dtype=dtype, rounds=rounds)
    case, settings = decoder.case, decoder.case.settings
    _, key, value = case.arrays()
    if dtype == torch.float64:
        key = normalise(key, settings)
    elif settings.qk_norm:
        key = forms.step.unit(case.key.float(), settings.eps).to(dtype).double().numpy()
    state, norm, window_key, window_value = decoder.state
    for b, rows in enumerate(kept):
        length = len(rows)
        assert decoder.length[b] == length, "length"
        k, v = key[b][:, rows], value[b][:, rows]
        if settings.has_state:
            want, total = define_state(
                k, v, case.parameters[4].double().numpy(), settings, length, case.scale
            )
            close(state[b], torch.from_numpy(want), tolerance, "state")
            if settings.has_norm:
                close(norm[b], torch.from_numpy(total), tolerance, "norm")
        ring = settings.ring_rows
        assert window_key.shape[2] == ring + settings.sinks, "window rows"
        held = {p: p % ring for p in range(max(0, length - ring), length)}
        pairs = [*held.items(), *((p, ring + p) for p in range(min(settings.sinks, length)))]
        for p, row in pairs:
            close(window_key[b, :, row], torch.from_numpy(k[:, p]), tolerance, f"window key of {p}")
            close(window_value[b, :, row], torch.from_numpy(v[:, p]), tolerance, f"window value of {p}")
    if dtype != torch.float64 and settings.has_state:
        assert state.dtype == torch.float32, f"state kept in {state.dtype}"


def rejecting_is_doing_nothing(forms, name):
    """A call whose rows are all rejected leaves no trace, bit for bit."""
    case = Case(forms, forms.settings(name), tokens=20)
    plain = Decoder(case)
    plain.chain([11])
    spoiled = plain.fork()
    spoiled.step(*case.rows(12, 20))
    nothing = torch.zeros(2, 3, dtype=torch.int64)
    spoiled.step(*case.rows(11, 12), index=nothing, count=nothing[:, 0])
    want = plain.step(*case.rows(11, 12))
    close(spoiled.step(*case.rows(11, 12), index=nothing, count=nothing[:, 0]), want)
    for name_, a, b in zip(forms.schema.STATE, spoiled.state, plain.state, strict=True):
        assert torch.equal(a, b), f"{name_} changed by a rejected call"


def causal(forms, name):
    """Perturbing token j changes no output before j, in the parallel and the step form."""
    settings = forms.settings(name)
    case = Case(forms, settings, tokens=26)
    before = case.parallel(), Decoder(case).chain([26])
    for j in (1, 8, 9, 17, 25):
        twin = Case(forms, settings, tokens=26)
        for x in (twin.query, twin.key, twin.value):
            x[:, :, j:] += 3.0
        for old, new in zip(before, (twin.parallel(), Decoder(twin).chain([26])), strict=True):
            close(new[:, :, :j], old[:, :, :j], 1e-12, f"before token {j}")
            sees_itself = settings.local != "none" or settings.pattern == "none" or settings.conv_taps
            assert not sees_itself or not torch.allclose(new[:, :, j], old[:, :, j]), (
                f"{j} not seen by itself"
            )


def sixteen_bits(forms, name, dtype):
    """16-bit inputs: the output loses at most twice what the naive form loses, the state nothing."""
    settings = forms.settings(name)
    tokens = 21 if name in SMALL else 80
    case = Case(forms, settings, tokens=tokens, batch=1, dtype=dtype)
    want, naive = case.refer(), case.refer(dtype)
    budget = 2 * relative(naive, want) + 1e-6
    decoder = Decoder(case)
    for what, got in (("parallel", case.parallel()), ("step", decoder.chain([tokens - 7, *[1] * 7]))):
        assert got.dtype == dtype, f"{what} returned {got.dtype}"
        assert relative(got, want) <= budget, f"{what}: {relative(got, want):.2e} over {budget:.2e}"
    state_is_definition(forms, name, dtype=dtype, tolerance=1e-5, rounds=5)


def single_precision(forms, name):
    """float32 inputs: 1e-5 relative RMS against float64, state included."""
    case = Case(forms, forms.settings(name), tokens=75, batch=1, dtype=torch.float32)
    want = case.define()
    for what, got in (("parallel", case.parallel()), ("step", Decoder(case).chain([70, *[1] * 5]))):
        assert relative(got, want) < 1e-5, f"{what}: {relative(got, want):.2e}"
    state_is_definition(forms, name, dtype=torch.float32, tolerance=1e-5, rounds=5)


def gradients(forms, name):
    """Gradients of the parallel form equal autograd through the reference, for every operand."""
    settings = forms.settings(name)
    case = Case(forms, replace(settings, window=min(settings.window, 8)), tokens=11, batch=1)
    operands = [case.query, case.key, case.value, *case.parameters]

    def gradient(function):
        leaves = [x.clone().requires_grad_() for x in operands]
        output = function(*leaves, settings=case.settings, scale=SCALE)
        weight = torch.sin(torch.arange(output.numel(), dtype=output.dtype)).reshape(output.shape)
        return torch.autograd.grad((output * weight).sum(), leaves, allow_unused=True)

    names = (*forms.schema.DATA, *forms.schema.PARAMETERS)
    pairs = zip(
        names,
        gradient(forms.parallel.parallel),
        gradient(forms.reference.augmented_attention_ref),
        strict=True,
    )
    for what, got, want in pairs:
        if want is None or not want.any():
            assert got is None or not got.any(), f"gradient of {what} from nowhere"
        else:
            assert got is not None, f"no gradient of {what}"
            close(got, want, what=f"gradient of {what}")


def gradients_are_slopes(forms, name):
    """Against finite differences: the reference shares kernels and maps with the parallel form."""
    settings = forms.settings(name)
    settings = replace(settings, window=min(settings.window, 3), conv_taps=min(settings.conv_taps, 3))
    settings = replace(settings, sinks=min(settings.sinks, 1))
    case = Case(forms, settings, tokens=7, batch=1)
    alpha, local_scale, conv, query_map, key_map = case.parameters
    operands = [case.query[..., :3], case.key[..., :3], case.value[..., :2]]
    operands += [alpha, local_scale, conv, query_map[:, :3], key_map[:, :3]]
    leaves = [x.clone().requires_grad_() for x in operands]

    def function(*x):
        return forms.parallel.parallel(*x, settings=settings, scale=SCALE)

    agree = torch.autograd.gradcheck(function, leaves, fast_mode=True, raise_exception=False)
    assert agree, "gradients differ from finite differences"


def module_is_its_parameters(forms, name):
    """The module computes the definition from its named parameters, from ones and zeros where it has none."""
    settings = forms.settings(name)
    case = Case(forms, settings, tokens=20, dtype=torch.float32)
    module = forms.module.AugmentedAttention(settings, case.shape)
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.add_(0.1 * torch.sin(torch.arange(parameter.numel()) + i).reshape(parameter.shape))
    named = dict(module.named_parameters())
    if "random_map" in dict(module.named_buffers()):
        named["key_map"] = module.random_map
        named["query_map"] = module.random_map.repeat_interleave(HEADS // case.kv_heads, 0)
    alpha, ones = named.get("alpha", torch.ones(HEADS)), torch.ones(HEADS)
    case.parameters = tuple(
        x.detach()
        for x in (
            alpha.exp() if "alpha" in named and settings.divides and settings.normalizes == "all" else alpha,
            named.get("local_scale", ones),
            named.get("conv", torch.zeros(HEADS, 1)),
            named.get("query_map", ones),
            named.get("key_map", ones),
        )
    )
    case.scale = 1.0 if settings.qk_norm else SCALE
    close(module(case.query, case.key, case.value, SCALE).detach(), case.define(), 1e-5)
    assert module.features == case.widths(), "width of the state"


def operands_of_a_call(forms, name):
    case = Case(forms, forms.settings(name), tokens=20)
    decoder = Decoder(case)
    decoder.chain([7, 5])
    index, count = torch.tensor([[0, 2, 1], [3, 3, 3]]), torch.tensor([2, 0])
    ancestors = torch.ones(4, 4).tril().bool().repeat(2, 1, 1)
    tensors = [
        *case.rows(12, 16), ancestors, decoder.length, index, count, *decoder.state, *decoder.pending,
        *case.parameters,
    ]  # fmt: skip
    return case, tensors


def inputs_are_left_alone(forms, name):
    case, tensors = operands_of_a_call(forms, name)
    before = [x.clone() for x in tensors]
    outputs = forms.step.step(*tensors, settings=case.settings, scale=SCALE)
    for port, old, new in zip(forms.schema.INPUTS, before, tensors, strict=True):
        assert torch.equal(old, new), f"{port} was modified"
    for x in outputs[:1]:
        x.fill_(float("nan"))
    for port, old, new in zip(forms.schema.INPUTS, before, tensors, strict=True):
        assert torch.equal(old, new), f"the output aliases {port}"


def strided_inputs(forms, name):
    case, tensors = operands_of_a_call(forms, name)
    want = forms.step.step(*tensors, settings=case.settings, scale=SCALE)
    strided = [torch.stack([x, x], -1)[..., 0] if x.dim() > 1 else x for x in tensors]
    swapped = [x.transpose(1, -1).contiguous().transpose(1, -1) if x.dim() == 4 else x for x in strided]
    got = forms.step.step(*swapped, settings=case.settings, scale=SCALE)
    for port, a, b in zip(forms.schema.OUTPUTS, got, want, strict=True):
        close(a, b, 1e-12, port)


def rows_that_hold_nothing(forms, name):
    """Empty or unaccepted rows and padded indices may hold anything finite."""
    case = Case(forms, forms.settings(name), tokens=20)
    clean, dirty = Decoder(case), Decoder(case)
    dirty.state = [
        x if port in ("state", "norm") else x + 1e3
        for port, x in zip(forms.schema.STATE, dirty.state, strict=True)
    ]
    for decoder in (clean, dirty):
        decoder.chain([5])
    spoiled = torch.tensor([False, False, False, True, True])[None, None, :, None]
    dirty.pending = [torch.where(spoiled, torch.tensor(1e3, dtype=x.dtype), x) for x in dirty.pending]
    count = torch.tensor([3, 1])
    want = clean.step(*case.rows(5, 9), index=torch.tensor([[0, 1, 2], [0, 0, 0]]), count=count)
    got = dirty.step(*case.rows(5, 9), index=torch.tensor([[0, 1, 2, 3, 4], [0, 4, 3, 4, 3]]), count=count)
    close(got, want)
    close(dirty.step(*case.rows(9, 12)), clean.step(*case.rows(9, 12)))


def autocast_changes_nothing(forms, name):
    """Trainers wrap models in autocast, which would round the sums over tokens to 16 bits as well."""
    case = Case(forms, forms.settings(name), tokens=29, batch=1, dtype=torch.float32)
    want, got = Decoder(case), Decoder(case)
    outputs = case.parallel(), want.chain([25, 3, 1])
    with torch.autocast("cpu", torch.bfloat16):
        outputs_under_autocast = case.parallel(), got.chain([25, 3, 1])
    for a, b in zip((*outputs_under_autocast, *got.state), (*outputs, *want.state), strict=True):
        assert a.dtype == b.dtype, f"{a.dtype} under autocast"
        assert torch.equal(a, b), "autocast reached the operator"


CHECKS = (
    module_is_its_parameters,
    tree_is_definition,
    parallel_is_definition,
    state_is_definition,
    rejecting_is_doing_nothing,
    inputs_are_left_alone,
    strided_inputs,
    rows_that_hold_nothing,
    autocast_changes_nothing,
    causal,
    single_precision,
    step_is_definition,
    gradients,
    gradients_are_slopes,
    tree_is_plain_decoding,
    reference_is_definition,
)
