"""Results as tables."""

from lineahead.recipes.tables import as_text


def test_plain_values_come_first_then_a_table_per_list_of_rows():
    text = as_text({"machine": {"threads": 2}, "costs": [{"ms": 1.5}, {"ms": 2.25}], "none": None})
    assert text.index("machine.threads") < text.index("costs")
    assert "2.25" in text


def test_columns_are_the_union_of_the_rows_keys_and_blanks_stay_blank():
    lines = as_text([{"a": 1}, {"a": 2, "b": [1, 2]}]).splitlines()
    assert "a" in lines[1]
    assert "b" in lines[1]
    assert "1, 2" in lines[-2]


def test_square_brackets_are_not_markup():
    assert "lineahead[cpu]" in as_text([{"cure": 'pip install "lineahead[cpu]"'}])


def test_large_numbers_have_separators():
    assert "1,048,576" in as_text({"bytes": 1 << 20})
    assert "12,346" in as_text({"rate": 12345.6})


def test_hashes_are_shortened_and_mappings_in_a_row_are_spelled_out():
    text = as_text([{"hash": "ab" * 32, "losses": {"kl": 0.5, "ce": 1.25}}])
    assert "abababababab " in text
    assert "kl 0.5, ce 1.25" in text
