"""The best tokens of rows of logits, by the kernel emulated on the CPU and called as the runtime calls it."""

import ctypes
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from lineahead.errors import BackendError
from lineahead.plugins.augmented_attention import native
from lineahead.plugins.tensorrt.choice import (
    MOST_TOP,
    SYMBOL,
    TOP_SYMBOL,
    LibraryChoice,
    scores_of,
    tokens_of,
)

HOST = SimpleNamespace(stream=0)


@pytest.fixture(scope="module")
def choice(emulated):
    """The kernel alone: the emulated library has no ``best_tokens.cu``."""
    found = LibraryChoice.__new__(LibraryChoice)
    found._top = getattr(ctypes.CDLL(str(emulated())), TOP_SYMBOL)
    return found


def top(choice, logits, count):
    """Tokens and scores ``[rows, count]``."""
    rows, width = logits.shape
    keys = np.zeros((rows, count), np.uint64)
    choice.enqueue_top(logits.ctypes.data, keys.ctypes.data, rows, width, count, HOST)
    return tokens_of(keys), scores_of(keys)


def expected(logits, count):
    """By a stable sort."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(logits, order, 1)


@pytest.mark.parametrize("width", [1, 2, 63, 64, 65, 1023, 1024, 1025, 5000, 49152])
@pytest.mark.parametrize("count", [1, 5, 64])
def test_the_best_are_those_of_a_stable_sort(choice, width, count, monkeypatch):
    monkeypatch.setenv("EMULATED_ORDER", str(width % 4))
    count = min(count, width)
    logits = np.random.default_rng(width).normal(0, 9, (2, width)).astype(np.float32)
    for got, wanted in zip(top(choice, logits, count), expected(logits, count), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    "kind",
    ["rising", "falling", "equal", "few values", "one stripe", "close", "infinite", "negative", "zeros"],
)
def test_hard_rows(choice, kind):
    random, width = np.random.default_rng(1), 4321
    rows = {
        "rising": np.arange(width),
        "falling": -np.arange(width),
        "equal": np.full(width, 3.5),
        "few values": random.integers(-2, 3, width),
        "one stripe": np.where(np.arange(width) % 1024 == 7, 5 + random.normal(size=width), -1),
        "close": 1 + random.integers(0, 70, width) * 2.0**-23,
        "infinite": np.where(random.random(width) < 0.99, -np.inf, random.normal(size=width)),
        "negative": -np.abs(random.normal(size=width)) * 1e-39,
        "zeros": np.where(random.random(width) < 0.5, -0.0, 0.0),
    }
    logits = rows[kind].astype(np.float32)[None]
    for got, wanted in zip(top(choice, logits, 64), expected(logits, 64), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_a_score_that_is_no_number_comes_first(choice):
    logits = np.zeros((1, 200), np.float32)
    logits[0, 150], logits[0, 160] = -np.nan, np.inf
    tokens, scores = top(choice, logits, 3)
    assert tokens[0].tolist() == [150, 160, 0]
    assert np.isnan(scores[0, 0])


@pytest.mark.parametrize(("width", "count"), [(10, 11), (1000, MOST_TOP + 1), (10, 0)])
def test_more_than_there_can_be_are_refused(choice, width, count):
    with pytest.raises(BackendError, match="more best tokens than there can be"):
        top(choice, np.zeros((1, width), np.float32), count)


@pytest.mark.parametrize("lacking", [SYMBOL, TOP_SYMBOL])
def test_a_library_without_one_of_them_is_refused(tmp_path, lacking):
    other = next(one for one in (SYMBOL, TOP_SYMBOL) if one != lacking)
    (tmp_path / "some.c").write_text(f"int {other}(void) {{ return 0; }}\n")
    library = tmp_path / "libsome.so"
    command = [native.find_compiler(), "-x", "c", "-shared", "-fPIC", tmp_path / "some.c", "-o", library]
    subprocess.run(command, check=True)
    with pytest.raises(BackendError, match=f"no kernels that choose tokens: .*{lacking}"):
        LibraryChoice(library)
