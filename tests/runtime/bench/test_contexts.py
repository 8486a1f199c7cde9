"""Which contexts a benchmark times, by the model's positions."""

import pytest

from lineahead.errors import InputError
from lineahead.runtime.bench.report import CONTEXTS, WIDTHS, BenchRequest, chosen_contexts


@pytest.mark.parametrize(
    ("limit", "expected"), [(None, CONTEXTS), (8192, CONTEXTS), (2048, CONTEXTS[:2]), (160, (160 - 32 - 17,))]
)
def test_contexts_stay_within_the_positions(limit, expected):
    assert max(WIDTHS) == 17
    assert chosen_contexts(limit, BenchRequest()) == expected


def test_a_context_past_the_positions_is_refused_by_the_option_that_lifts_it():
    request = BenchRequest(contexts=(256, 32768))
    assert chosen_contexts(None, request) == (256, 32768)
    with pytest.raises(InputError, match="32768 and 32 steps: the model's positions end at 8192") as error:
        chosen_contexts(8192, request)
    assert "--ignore-position-limit" in error.value.hint
