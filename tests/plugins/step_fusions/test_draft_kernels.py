"""The kernels between a draft's steps, emulated on the CPU and called as the runtime calls them."""

from types import SimpleNamespace

import numpy as np
import pytest

from lineahead.errors import BackendError
from lineahead.plugins.tensorrt.draft_kernels import LibraryDraftKernels

HOST = SimpleNamespace(stream=0)


@pytest.fixture(scope="module")
def kernels(emulated):
    return LibraryDraftKernels(emulated())


def choose(kernels, scores, names, nodes, place):
    """``ids`` and ``tokens`` after a choice; ids count up before it."""
    rows, width = scores.shape
    ids = np.arange(rows * nodes, dtype=np.int32).reshape(rows, nodes)
    tokens = np.full(rows, -1, np.int32)
    kernels.choose(
        scores.ctypes.data,
        names.ctypes.data,
        ids.ctypes.data,
        tokens.ctypes.data,
        rows=rows,
        width=width,
        nodes=nodes,
        place=place,
        device=HOST,
    )
    return ids, tokens


@pytest.mark.parametrize("width", [1, 5, 31, 32, 33, 1000, 1025, 8192])
def test_the_best_score_names_the_token_of_its_node(kernels, width, monkeypatch):
    random = np.random.default_rng(width)
    names = random.permutation(width + 7)[:width].astype(np.int32)
    for order in range(3):
        monkeypatch.setenv("EMULATED_ORDER", str(order))
        scores = random.normal(size=(3, width)).astype(np.float32) - 50
        ids, tokens = choose(kernels, scores, names, 6, 1 + order)
        before = np.arange(18, dtype=np.int32).reshape(3, 6)
        before[:, 1 + order] = names[scores.argmax(1)]
        np.testing.assert_array_equal(ids, before)
        np.testing.assert_array_equal(tokens, before[:, 1 + order])


def test_the_first_among_equals_and_no_score_that_is_no_number(kernels):
    names = np.arange(100, 2150, dtype=np.int32)
    scores = np.full((5, 2050), -3, np.float32)
    scores[0, [7, 900, 2049]] = 4
    scores[1, 40], scores[1, 1500] = np.nan, 2
    scores[2] = -np.inf
    scores[2, 1999] = -1e30
    scores[3] = np.nan
    scores[4] = -np.inf
    _, tokens = choose(kernels, scores, names, 2, 1)
    assert tokens[[0, 1, 2, 4]].tolist() == [107, 1600, 2099, 100]
    assert tokens[3] in names  # all the same: a proposal that is wrong costs time only


def test_hidden_states_are_gathered_from_anywhere(kernels, monkeypatch):
    monkeypatch.setenv("EMULATED_ORDER", "3")
    width, nodes = 577, 3
    held = [np.random.default_rng(i).normal(size=width).astype(np.float32) for i in range(3)]
    sources = np.array([held[2].ctypes.data, 0, held[0].ctypes.data, held[1].ctypes.data], np.uint64)
    ids = np.arange(12, dtype=np.int32).reshape(4, nodes)
    hidden, tokens = np.full((4, width), 9, np.float32), np.zeros(4, np.int32)
    kernels.begin(
        sources.ctypes.data,
        ids.ctypes.data,
        hidden.ctypes.data,
        tokens.ctypes.data,
        rows=4,
        width=width,
        nodes=nodes,
        device=HOST,
    )
    np.testing.assert_array_equal(hidden, [held[2], np.zeros(width), held[0], held[1]])
    assert tokens.tolist() == [0, 3, 6, 9]


def test_a_node_that_is_not_there_is_refused(kernels):
    scores, names = np.zeros((1, 3), np.float32), np.zeros(3, np.int32)
    for place in (-1, 2):
        with pytest.raises(BackendError, match="a draft's node that the call does not have"):
            choose(kernels, scores, names, 2, place)


def test_a_library_without_them_is_refused(tmp_path):
    with pytest.raises(BackendError, match="no kernels of drafts"):
        LibraryDraftKernels(tmp_path / "absent.so")
