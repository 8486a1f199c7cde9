"""The operator's tests are worth something only if they fail on a damaged operator.

Every mutant is one edit of the source. The checks are the very functions that the operator's own tests call.
"""

import operator_cases as cases
import operator_checks as checks
import pytest
import torch
from mutant_catalogue import NAMED, OTHERS
from mutant_damage import load

import lineahead.plugins.augmented_attention.step as shipped

FIRST = (
    *("sliding-sinks", "grouped-relu2", "grouped-softmax", "global-denominator", "long-conv", "no-conv"),
    *("scaled-hedgehog", "softmax-beside-identity", "rms-of-all", "performer", "rfa"),
)


ALL = (FIRST, tuple(name for name in cases.VARIANTS if name not in FIRST))


def battery(groups=ALL):
    """(check, variant, arguments): the quickest check of all, then a few variants' others, then the rest."""
    quickest, *others = checks.CHECKS
    for names in groups:
        for name in names:
            yield quickest, name, ()
    yield checks.reference_is_definition, groups[0][0], ()
    yield checks.sixteen_bits, groups[0][0], (torch.bfloat16,)
    for names in groups:
        for check in others:
            for name in names:
                yield check, name, ()
        for name in names:
            yield checks.sixteen_bits, name, (torch.bfloat16,)


def verdict(forms, crashes=False, groups=ALL):
    """The first check that fails, and how; None when all pass. An exception counts only if `crashes`."""
    crash = None
    for check, name, arguments in battery(groups):
        try:
            check(forms, name, *arguments)
        except AssertionError as error:
            return f"{check.__name__}[{name}]: {str(error).splitlines()[0]}"
        except Exception as error:
            crash = f"{check.__name__}[{name}]: {type(error).__name__}: {error}"
            if crashes:
                return crash
    assert crash is None, f"does not run, so that nothing was tested: {crash}"
    return None


def test_the_checks_pass_on_undamaged_source():
    """Loaded the same way, without an edit: what fails below fails because of the edit.

    All variants pass in test_reference.py; how the modules were loaded is the same to each.
    """
    forms = cases.Forms(**load())
    assert forms.step is not shipped
    assert verdict(forms, groups=ALL[:1]) is None


@pytest.mark.parametrize("mutant", [*NAMED, *OTHERS], ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_mutant_dies(mutant, record_property):
    killer = verdict(cases.Forms(**load(mutant)), mutant.crashes)
    record_property("killed_by", killer)
    print(killer)
    assert killer is not None, f"{mutant.file}: {mutant.name}: survived every check"


def test_an_edit_that_finds_nothing_is_an_error():
    from mutant_damage import Mutant

    with pytest.raises(AssertionError, match="0 of 1 places"):
        load(Mutant(name="stale", file="step.py", old="no such line", new=""))
    with pytest.raises(AssertionError, match="no such file"):
        load(Mutant(name="stale", file="stepp.py", old="", new=""))


def test_the_shipped_modules_are_untouched():
    import sys

    before = sys.modules[shipped.__name__]
    load(NAMED[0])
    assert sys.modules[shipped.__name__] is before
    import lineahead.plugins.augmented_attention.step as again

    assert again is shipped
