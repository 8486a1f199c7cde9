"""The checks of the encoders' form and of cross attention fail when either is damaged."""

# ruff: noqa: E501

import operator_cases as cases
import operator_two_sided as two_sided
import pytest
from mutant_damage import Mutant, load

TEXT, CROSS, LINFORMER, MODULE = "bidirectional.py", "cross.py", "linformer.py", "module.py"
ROWS = (
    ("causal again", TEXT, "_before(x, self.reach) + _before(x.flip(3), self.reach).flip(3)", "_before(x, self.reach)"),
    ("own chunk twice", TEXT, "skipped = min(1 + reach, x.shape[3])", "skipped = min(reach, x.shape[3])"),
    ("a chunk forgotten", TEXT, "skipped = min(1 + reach, x.shape[3])", "skipped = min(2 + reach, x.shape[3])"),
    ("filter turned round", TEXT, "conv.flip(-1).unsqueeze(1)", "conv.unsqueeze(1)"),
    ("window one wider", TEXT, "(row - column).abs() < settings.window", "(row - column).abs() <= settings.window"),
    ("window to one side", TEXT, "(row - column).abs() < settings.window", "(row - column) < settings.window"),
    ("padding summed", TEXT, "real & (row >= settings.sinks)", "torch.ones_like(real) & (row >= settings.sinks)"),
    ("padding convolved", TEXT, "value = torch.where(text.valid[:, None, :, None], value.to(compute), zero)", "value = value.to(compute)"),
    ("sinks summed too", TEXT, "keys = torch.where(text.summed, keys, zero)", "pass"),
    ("sinks of padding", TEXT, "held = valid[:, None", "held = torch.ones_like(valid)[:, None"),
    ("far neighbours forgotten", TEXT, "if text.reach:", "if False:"),
    ("norm of the own chunk", TEXT, "total = queries @ text.elsewhere(keys.sum(-2)).unsqueeze(-1)", "total = queries @ keys.sum(-2).unsqueeze(-1)"),
    ("scale kept beside local_norm", TEXT, "unit(key, settings.eps), 1.0", "unit(key, settings.eps), scale"),
    ("rows kept in 16 bits", TEXT, "return output.to(dtype)", "return output.bfloat16().to(dtype)"),
    ("padding mixed", LINFORMER, "    key = torch.where(valid[:, None, :, None], key,", "    key = torch.where(torch.ones_like(valid[:, None, :, None]), key,"),
    ("mixtures exchanged", LINFORMER, "((key_mixture, key), (value_mixture, value))", "((value_mixture, key), (key_mixture, value))"),
    ("no scale in mixtures", LINFORMER, "keys.transpose(2, 3) * scale", "keys.transpose(2, 3)"),
    ("source padding summed", CROSS, "if valid is not None:", "if False:"),
    ("no scale in the source", CROSS, "key_map.to(compute), scale)", "key_map.to(compute), 1.0)"),
    ("queries as they are", CROSS, "queries = normalised(query, settings)", "queries = query"),
    ("weight forgotten", CROSS, "alpha=alpha.to(compute)[:, None, None]", "alpha=torch.ones_like(alpha).to(compute)[:, None, None]"),
    ("causal filter", MODULE, "torch.zeros(shape.heads, settings.conv_width)", "torch.zeros(shape.heads, settings.conv_taps)"),
)  # fmt: skip
FEW = (
    "sliding-sinks",
    "many-sinks",
    "grouped-relu2",
    "augmented-relu",
    "augmented-linformer",
    "global-denominator",
)
MUTANTS = [Mutant(name=name, file=file, old=old, new=new) for name, file, old, new in ROWS]


def killer(forms):
    for checks, names in (
        (two_sided.CHECKS, FEW),
        (two_sided.CROSS_CHECKS, ("performer", "no-conv")),
    ):
        for check in checks:
            for name in names:
                try:
                    check(forms, name)
                except (AssertionError, RuntimeError) as error:
                    return f"{check.__name__}[{name}]: {str(error).splitlines()[:1]}"
    return None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_mutant_dies(mutant):
    assert killer(cases.Forms(**load(mutant))) is not None, f"{mutant.file}: {mutant.name}: survived"
