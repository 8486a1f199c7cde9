"""The step form: trees after every context, shapes and layouts of its inputs, precision, drift, memory."""

import importlib.util
from dataclasses import replace

import numpy as np
import operator_cases as cases
import operator_checks as checks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.mark.parametrize("name", cases.PRESET_NAMES)
@pytest.mark.parametrize("first", range(0, 64, 16))
def test_trees_after_every_remainder(name, first, forms):
    """Contexts of r and 64 + r (or 128 + r) tokens for every r in 0 .. 63, as one ragged batch."""
    remainders = range(first, first + 16)
    counts = [*remainders, *(64 * (1 + r % 2) + r for r in remainders)]
    checks.tree_is_definition(forms, name, counts=counts, nodes=12, seed=first)


@pytest.mark.parametrize("name", [*cases.PRESET_NAMES, "grouped-softmax", "sliding-sinks"])
def test_several_roots(name, forms):
    checks.tree_is_definition(forms, name, nodes=8, roots=3, seed=5)


@pytest.mark.parametrize("name", cases.PRESET_NAMES)
@pytest.mark.parametrize("seed", [1, 2])
def test_long_random_accepts_and_rejects(name, seed, forms):
    checks.state_is_definition(forms, name, seed=seed, rounds=50)


@st.composite
def drawn_settings(draw, forms):
    kind = draw(st.sampled_from(["relu2", "softmax", "relu2-denominator", "none"]))
    denominator = kind in ("softmax", "relu2-denominator")
    return forms.schema.AttentionSettings(
        local=kind.removesuffix("-denominator"),
        pattern="none" if kind == "none" else draw(st.sampled_from(["grouped", "sliding"])),
        window=draw(st.integers(1, 9)),
        feature_map="hedgehog" if denominator else "identity",
        feature_dim=draw(st.sampled_from([0, 3])) if denominator else 0,
        normalizer="denominator" if denominator else "none",
        qk_norm=draw(st.booleans()),
        conv_taps=draw(st.integers(0, 12)),
        sinks=0 if kind == "none" else draw(st.integers(0, 11)),
    )


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_settings_any_chunks_then_a_tree(data, forms):
    """Chunks of any size, then a tree, equal the definition; so does the parallel form."""
    drawn = data.draw(drawn_settings(forms))
    sizes = data.draw(st.lists(st.integers(1, 14), min_size=1, max_size=6))
    nodes, kv_heads, seed = data.draw(st.integers(1, 9)), data.draw(st.sampled_from([1, 2, 4])), 17
    tokens = sum(sizes)
    case = cases.Case(forms, drawn, tokens=tokens + nodes, batch=1, kv_heads=kv_heads, seed=seed)
    tree = cases.random_tree(np.random.default_rng(tokens), nodes, roots=data.draw(st.integers(1, nodes)))
    want = cases.tree_definition(case, [tokens], tokens, [tree])
    decoder = cases.Decoder(case)
    got = decoder.chain(sizes)
    cases.close(got, case.define()[:, :, :tokens], what="chunks")
    cases.close(case.parallel(tokens), got, what="parallel")
    rows = case.rows(tokens, tokens + nodes)
    cases.close(decoder.step(*rows, torch.from_numpy(tree[1])[None]), want, what="tree")


@pytest.mark.parametrize("name", cases.PRESET_NAMES)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_query_heads_share_key_heads(name, kv_heads, forms):
    """Against a call where every query head has its own copy of its keys and values."""
    one = cases.Case(forms, forms.settings(name), tokens=70, kv_heads=kv_heads)
    many = cases.Case(forms, forms.settings(name), tokens=70, kv_heads=cases.HEADS)
    share = cases.HEADS // kv_heads
    many.query = one.query
    many.key, many.value = (x.repeat_interleave(share, 1) for x in (one.key, one.value))
    *rest, key_map = one.parameters
    many.parameters = (*rest, key_map.repeat_interleave(share, 0))
    cases.close(cases.Decoder(one).chain([66, 3, 1]), cases.Decoder(many).chain([66, 3, 1]))
    cases.close(one.parallel(), many.parallel(), what="parallel")


@pytest.mark.parametrize("name", cases.PRESET_NAMES)
def test_unused_nodes_do_not_matter(name, forms):
    """A tree padded with nodes that are nobody's ancestors gives the same outputs for the others."""
    case = cases.Case(forms, forms.settings(name), tokens=80, batch=1)
    decoder = cases.Decoder(case)
    decoder.chain([66])
    _, ancestors, _ = cases.random_tree(np.random.default_rng(0), 6)
    padded = np.eye(10, dtype=bool)
    padded[:6, :6] = ancestors
    want = decoder.fork().step(*case.rows(66, 72), torch.from_numpy(ancestors)[None])
    got = decoder.fork().step(*case.rows(66, 76), torch.from_numpy(padded)[None])
    cases.close(got[:, :, :6], want)


@pytest.mark.parametrize("name", cases.PRESET_NAMES)
def test_batch_rows_are_independent(name, forms):
    case = cases.Case(forms, forms.settings(name), tokens=90, batch=3)
    decoder, index, count = cases.ragged(case, [3, 64, 77], 80)
    whole = decoder.step(*case.rows(80, 84), index=index, count=count)
    for b in range(3):
        alone = cases.Case(forms, forms.settings(name), tokens=90, batch=3)
        alone.batch = 1
        alone.query, alone.key, alone.value = (x[b : b + 1] for x in (case.query, case.key, case.value))
        single = cases.Decoder(alone)
        single.step(*alone.rows(0, 80))
        got = single.step(*alone.rows(80, 84), index=index[:1], count=count[b : b + 1])
        cases.close(got, whole[b : b + 1], what=f"row {b}")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in cases.PRESET_NAMES),
        *zip(cases.PRESET_NAMES, (torch.bfloat16, torch.float16), strict=True),  # the others: below
    ],
    ids=str,
)
def test_no_drift_over_two_thousand_steps(name, dtype, forms):
    """The float32 state stays within 1e-5 of the float64 sums of the very rows that were committed."""
    drift(forms, name, dtype, [1] * 2000)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", cases.PRESET_NAMES)
def test_no_drift_over_32k_tokens_in_sixteen_bits(name, dtype, forms):
    """Kept in the inputs' 16 bits, S would be off by 3 % (fp16) or 19 % (bf16) here."""
    drift(forms, name, dtype, [512] * 64)


def drift(forms, name, dtype, sizes):
    settings_ = forms.settings(name)
    case = cases.Case(forms, settings_, tokens=sum(sizes) + 1, batch=1, dtype=dtype)
    case.key, case.value = case.key + 0.5, case.value + 0.5  # a mean, as real keys have: sums grow
    decoder, keys = cases.Decoder(case), []
    for i, size in enumerate(sizes):
        start = sum(sizes[:1]) * i
        decoder.step(*case.rows(start, start + size))
        keys.append(decoder.pending[0])
    decoder.settle()
    state, norm = decoder.state[:2]
    key_map = case.parameters[4].double().numpy()
    key, value = torch.cat(keys, 2)[0].double().numpy(), case.value[0].double().numpy()
    want, total = checks.define_state(key, value[:, : sum(sizes)], key_map, settings_, sum(sizes), case.scale)
    assert state.dtype == torch.float32
    assert cases.relative(state[0], torch.from_numpy(want)) < 1e-5
    if settings_.has_norm:
        assert norm.dtype == torch.float32
        assert cases.relative(norm[0], torch.from_numpy(total)) < 1e-5


@pytest.mark.parametrize("name", cases.VARIANTS)
def test_memory_does_not_grow(name, forms):
    case = cases.Case(forms, forms.settings(name), tokens=200)
    decoder = cases.Decoder(case)
    shapes = [x.shape for x in decoder.state]
    for size in (1, 50, 1, 1, 99):
        decoder.step(*case.rows(0, size))
        assert [x.shape for x in decoder.state] == shapes
        assert decoder.pending[0].shape[2] == size
        assert all(
            x.untyped_storage().nbytes() == x.numel() * x.element_size()
            for x in decoder.state
            if x.numel() > 1
        )


class Products(TorchDispatchMode):
    """Notes how many rows every matrix product sums over."""

    def __init__(self):
        super().__init__()
        self.sums = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            self.sums.append(args[0].shape[-1])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", cases.VARIANTS)
def test_no_product_is_over_nothing(name, forms):
    """ONNX Runtime before 1.32 leaves memory as it was where a fused product sums over no row."""
    case = cases.Case(forms, forms.settings(name), tokens=9)
    decoder = cases.Decoder(case)
    index, count = torch.zeros(case.batch, 0).long(), torch.zeros(case.batch).long()
    with Products() as products:
        for _ in range(2):
            decoder.step(*case.rows(0, 4), index=index, count=count)
    assert products.sums
    assert min(products.sums) > 0


@pytest.mark.shared
@pytest.mark.parametrize("seed", range(4))
def test_against_the_shared_reference(seed, forms, shared):
    """Verification and commits over random trees, against an independent executable form."""
    spec = importlib.util.spec_from_file_location("reference_state", shared / "reference_state.py")
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    rng = np.random.default_rng(seed)
    settings_ = replace(forms.settings("augmented"), eps=0.0, window=[64, 8, 5, 64][seed])
    nodes, rounds = 9, 20
    case = cases.Case(
        forms, settings_, tokens=100 + rounds * nodes, batch=1, kv_heads=cases.HEADS, seed=seed, scale=1.0
    )
    alpha, local_scale, conv, *_ = case.parameters
    local_scale.fill_(1.0)
    case.value = case.value[..., [0, 1, 2, 3, 4, 0]]
    case.shape = replace(case.shape, value_dim=6)
    decoder = cases.Decoder(case)
    unit = torch.nn.functional.normalize
    state = theirs.init_state(cases.HEADS, 6, 32, torch.float64, torch.float64)
    prefix = int(rng.integers(1, 100))
    decoder.step(*case.rows(0, prefix))
    q, k, v = case.rows(0, prefix)
    state = theirs.commit(state, unit(k[0], dim=-1), v[0], list(range(prefix)), settings_.window)
    index, count = torch.arange(prefix)[None], torch.tensor([prefix])
    for i in range(rounds):
        start = 100 + i * nodes
        parents, ancestors, _ = cases.random_tree(rng, nodes, shuffle=False)
        q, k, v = case.rows(start, start + nodes)
        got = decoder.step(q, k, v, torch.from_numpy(ancestors)[None], index, count)
        q, k, v = unit(q[0], dim=-1), unit(k[0], dim=-1), v[0]
        want = theirs.verify(state, q, k, v, parents, conv, alpha[:, None, None], settings_.window)
        cases.close(got[0], want, what=f"round {i}")
        path = cases.path_to(parents, int(rng.integers(0, nodes)))
        state = theirs.commit(state, k, v, path, settings_.window)
        index, count = torch.tensor([path]), torch.tensor([len(path)])
    decoder.settle(index, count)
    cases.close(decoder.state[0][0], state.S, what="state")
