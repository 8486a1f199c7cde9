"""What the encoders' form and cross attention must satisfy, as functions of the forms under test.

The tests beside this file call them on the shipped forms, ``tests/mutants`` on damaged copies.
"""

from dataclasses import replace

import numpy as np
import torch
from operator_cases import (
    EXACT,
    HEADS,
    KV_HEADS,
    SCALE,
    SMALL,
    VALUE_DIM,
    VARIANTS,
    Case,
    close,
    relative,
)
from operator_oracle import FEATURE_MAPS, NORMALIZERS, normalise

LONGEST = 40
LINFORMERS = {
    "linformer": {
        "local": "none", "pattern": "none", "feature_map": "linformer", "normalizer": "denominator",
        "qk_norm": False, "conv_taps": 0, "feature_dim": 4, "eps": 1e-12,
    },
    "augmented-linformer": {
        "feature_map": "linformer", "normalizer": "denominator", "normalizes": "global", "qk_norm": False,
        "local_norm": True, "window": 8, "conv_taps": 5, "feature_dim": 4, "eps": 1e-12,
    },
}  # fmt: skip
NAMES = (*SMALL, *LINFORMERS)
CROSS = tuple(name for name in SMALL if VARIANTS[name].get("feature_map", "identity") != "none")


class TwoSided(Case):
    """Operands of a text that is seen from both ends."""

    def __init__(self, forms, name, *, tokens, batch=2, **options):
        values = {**(LINFORMERS.get(name) or VARIANTS[name]), "causal": False}
        super().__init__(
            forms, forms.schema.AttentionSettings(**values), tokens=tokens, batch=batch, **options
        )
        rng = torch.Generator().manual_seed(7)
        alpha, local_scale, _, query_map, key_map = self.parameters
        conv = torch.randn(HEADS, max(self.settings.conv_width, 1), generator=rng, dtype=torch.float64)
        if name in LINFORMERS:
            shape = (self.kv_heads, LONGEST, self.settings.feature_dim)
            query_map, key_map = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(2))
        made = (alpha, local_scale, conv, query_map, key_map)
        self.parameters = tuple(x.to(self.dtype) for x in made)

    def everything(self):
        """The definition, with every token visible to every other."""
        nodes = self.query.shape[2]
        depth = np.arange(nodes)[None].repeat(self.batch, 0)
        return self.define(depth, np.ones((self.batch, nodes, nodes), bool))

    def first(self, length):
        """The same operands for a text of `length` tokens."""
        self.query, self.key, self.value = self.rows(0, length)
        return self

    def run(self, count=None):
        return self.forms.bidirectional.bidirectional(
            self.query, self.key, self.value, *self.parameters,
            settings=self.settings, scale=self.scale, count=count,
        )  # fmt: skip


def reference_is_two_sided(forms, name):
    case = TwoSided(forms, name, tokens=19, batch=1)
    close(case.refer(), case.everything())


def bidirectional_is_definition(forms, name):
    for length in (1, 2, 7, 8, 9, 16, 17, 25, 33):
        case = TwoSided(forms, name, tokens=33).first(length)
        close(case.run(), case.everything(), what=f"{length} tokens")


def padding_is_read_by_nobody(forms, name):
    counts = (1, 5, 8, 9, 20, 24)
    case = TwoSided(forms, name, tokens=24, batch=len(counts))
    for row, count in enumerate(counts):
        for x in (case.query, case.key, case.value):
            x[row, :, count:] *= 1e3
    got = case.run(torch.tensor(counts))
    for row, count in enumerate(counts):
        alone = TwoSided(forms, name, tokens=24, batch=1)
        alone.parameters = case.parameters
        alone.query, alone.key, alone.value = (
            x[row : row + 1, :, :count] for x in (case.query, case.key, case.value)
        )
        close(got[row : row + 1, :, :count], alone.everything(), what=f"{count} of 24 tokens")


def two_sided_gradients(forms, name):
    case = TwoSided(forms, name, tokens=19, batch=1)
    operands = [case.query, case.key, case.value, *case.parameters]

    def gradient(function):
        leaves = [x.clone().requires_grad_() for x in operands]
        output = function(*leaves, settings=case.settings, scale=case.scale)
        weight = torch.cos(torch.arange(output.numel(), dtype=output.dtype)).reshape(output.shape)
        return torch.autograd.grad((output * weight).sum(), leaves, allow_unused=True)

    pairs = zip(
        gradient(forms.bidirectional.bidirectional),
        gradient(forms.reference.augmented_attention_ref),
        strict=True,
    )
    for number, (got, want) in enumerate(pairs):
        if want is None or not want.any():
            assert got is None or got.abs().max() <= EXACT, f"gradient of operand {number} from nowhere"
        else:
            close(got, want, what=f"gradient of operand {number}")


def two_sided_precision(forms, name):
    wide = TwoSided(forms, name, tokens=33).everything()
    case = TwoSided(forms, name, tokens=33, dtype=torch.float32)
    got = case.run()
    assert got.dtype == torch.float32
    assert relative(got, wide) <= 1e-4 if "yoso" in name else relative(got, wide) <= 2e-5, "float32"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(case.run(), got), "autocast reached the operator"


def two_sided_module(forms, name):
    """The module's own parameters, at their initial values and away from them."""
    case = TwoSided(forms, name, tokens=17, dtype=torch.float32)
    shape = replace(case.shape, positions=LONGEST)
    module = forms.module.AugmentedAttention(case.settings, shape)
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.add_(0.1 * torch.sin(torch.arange(parameter.numel()) + i).reshape(parameter.shape))
    case.parameters = tuple(x.detach() for x in module.operands(case.query))
    case.scale = module.scale(SCALE)
    if case.settings.conv_taps:
        assert module.conv.shape == (HEADS, 2 * case.settings.conv_taps - 1)
    got = module(case.query, case.key, case.value, SCALE, torch.tensor([17, 17])).detach()
    close(got, case.everything(), 1e-3 if "yoso" in name else 2e-5)


def cross_is_definition(forms, name):
    """Every query weighs every key of the source; padding anywhere in it is read by nobody."""
    settings = forms.roles.role_settings(forms.schema.AttentionSettings(**VARIANTS[name]), "cross")
    case = Case(forms, settings, tokens=23)
    targets, counts = case.query[:, :, :6], (23, 9)
    valid = torch.ones(2, 23, dtype=torch.bool)
    valid[1, [0, 3, *range(11, 23)]] = False
    assert int(valid[1].sum()) == counts[1]
    key = torch.where(valid[:, None, :, None], case.key, torch.tensor(50.0, dtype=torch.float64))
    alpha, _, _, query_map, key_map = case.parameters
    common = {"settings": settings, "scale": SCALE}
    state, norm = forms.cross.summarise(key, case.value, key_map, valid=valid, **common)
    got = forms.cross.cross_attention(targets, state, norm, alpha, query_map, **common)
    assert state.shape == (2, KV_HEADS, case.widths(), VALUE_DIM)
    spread = [h * KV_HEADS // HEADS for h in range(HEADS)]
    phi = FEATURE_MAPS[settings.feature_map]
    q = phi(normalise(targets.numpy(), settings), query_map.numpy(), SCALE)
    k = phi(normalise(case.key.numpy()[:, spread], settings), key_map.numpy()[spread], SCALE)
    weights = np.einsum("bhif,bhjf->bhij", q, k) * valid.numpy()[:, None, None]
    total = weights.sum(-1, keepdims=True)
    if settings.feature_map == "rfa":
        total = np.maximum(total, np.exp(-2))
    weights = weights * alpha.numpy()[:, None, None]
    if settings.normalizer == "denominator":
        total = total * alpha.numpy()[:, None, None]
    rows = np.einsum("bhij,bhjd->bhid", weights, case.value.numpy()[:, spread])
    close(got, torch.from_numpy(NORMALIZERS[settings.normalizer](rows, total, settings.eps)), 1e-8)


def cross_module(forms, name):
    """The module's two halves are its whole, whatever the lengths."""
    settings = forms.roles.role_settings(forms.schema.AttentionSettings(**VARIANTS[name]), "cross")
    case = Case(forms, settings, tokens=9)
    module = forms.module.CrossAttention(settings, case.shape).double()
    whole = module(case.query[:, :, :4], case.key, case.value, SCALE)
    state, norm = module.summarise(case.key, case.value, SCALE)
    halves = torch.cat([module.attend(case.query[:, :, i : i + 1], state, norm, SCALE) for i in range(4)], 2)
    close(halves, whole, 1e-12)
    assert state.shape[2:] == (module.features, VALUE_DIM)


CHECKS = (
    bidirectional_is_definition,
    padding_is_read_by_nobody,
    two_sided_gradients,
    two_sided_precision,
    two_sided_module,
    reference_is_two_sided,
)
CROSS_CHECKS = (cross_is_definition, cross_module)
