"""Scripted runs of a step graph: prefill in chunks, decoding, trees at group boundaries, ragged batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 256
Array = NDArray[Any]
Backend = Callable[[Sequence[Array]], Sequence[Array]]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One call: its nodes, and which of them are accepted afterwards.

    Attributes:
        tokens: ``[B, T]``.
        ancestors: ``[B, T, T]``.
        accepted: nodes in path order, one list a row; may be empty.
    """

    tokens: Array
    ancestors: Array
    accepted: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run from the empty state.

    Attributes:
        name: what it exercises.
        turns: its calls.
        all_rows: whether long calls return every row's logits, instead of three.
        start: tokens that went before, of which only the number is left: positions count from here.
    """

    name: str
    turns: list[Turn]
    all_rows: bool = False
    start: int = 0

    @property
    def nodes(self) -> int:
        """Nodes of all calls: more than any sequence has tokens."""
        return sum(turn.tokens.shape[1] for turn in self.turns)


def cases(windows: Sequence[int], vocabulary: int, *, seed: int = 0) -> list[Case]:
    """The runs that parity is judged by; `windows` says where groups and windows end, the shortest first."""
    rng, span = np.random.default_rng(seed), max(windows[0], 2)

    def chain(nodes: int) -> Turn:
        tree = np.tril(np.ones((nodes, nodes), bool))
        return Turn(
            tokens=rng.integers(vocabulary, size=(1, nodes)), ancestors=tree[None], accepted=[[*range(nodes)]]
        )

    def trees(nodes: int, batch: int, *, refuse: int | None = None) -> Turn:
        drawn = [random_tree(rng, nodes) for _ in range(batch)]
        paths = [paths[int(rng.integers(nodes))] for _, paths in drawn]
        if refuse is not None:
            paths[refuse] = []
        return Turn(
            tokens=rng.integers(vocabulary, size=(batch, nodes)),
            ancestors=np.stack([tree for tree, _ in drawn]),
            accepted=paths,
        )

    def crossing(window: int) -> list[Turn]:
        parts = [min(CHUNK, window + 3 - start) for start in range(0, window + 3, CHUNK)]
        return [*map(chain, parts), trees(6, 1), chain(1)]

    starts = (span - 1, span, 2 * span - 2)
    return [
        Case(name="prefill and decode", turns=[chain(n) for n in (span, span, span // 2 + 1, *[1] * 6)]),
        *(Case(name=f"trees from {n}", turns=[chain(n), trees(7, 1), trees(5, 1), chain(1)]) for n in starts),
        *(Case(name=f"beyond {window}", turns=crossing(window)) for window in windows[1:]),
        Case(
            name="ragged batch",
            turns=[
                trees(span + 3, 2),
                trees(6, 2, refuse=0),
                trees(6, 2),
                trees(4, 2, refuse=1),
                trees(1, 2),
            ],
        ),
        Case(
            name="small ragged batch",
            turns=[trees(7, 2), trees(6, 2, refuse=0), trees(5, 2, refuse=1), trees(1, 2)],
        ),
    ]  # fmt: skip


def random_tree(rng: np.random.Generator, nodes: int) -> tuple[Array, list[list[int]]]:
    """A random tree with nearby parents: ancestor matrix ``[T, T]``, and every node's path from the root."""
    paths, tree = [[0]], np.zeros((nodes, nodes), bool)
    for node in range(1, nodes):
        paths.append([*paths[int(rng.integers(max(0, node - 3), node))], node])
    for node, path in enumerate(paths):
        tree[node, path] = True
    return tree, paths


def run(backend: Backend, case: Case, empty: Sequence[Array]) -> Iterator[Sequence[Array]]:
    """Drive `backend` through `case`, carrying its own state from turn to turn.

    Args:
        backend: takes and returns arrays in the order of :mod:`lineahead.plugins.step_graph`.
        case: the calls.
        empty: the first call's `past.*` and `pending.*`, each for one sequence or for all.

    Yields:
        Every call's outputs.
    """
    batch = len(case.turns[0].tokens)
    past: Sequence[Array] = [np.repeat(x, batch // len(x), 0) for x in empty]
    length: Array = np.full(batch, case.start, np.int64)
    accepted: list[list[int]] = [[] for _ in range(batch)]
    for turn in case.turns:
        width = max(len(path) for path in accepted)
        index = np.array([path + [0] * (width - len(path)) for path in accepted], np.int64).reshape(
            batch, width
        )
        count = np.array([len(path) for path in accepted], np.int64)
        nodes = turn.tokens.shape[1]
        rows = np.arange(nodes) if nodes < 9 or case.all_rows else np.array([0, nodes // 2, nodes - 1])
        call = (turn.tokens, turn.ancestors, np.tile(rows, (batch, 1)), index, count, length)
        outputs = backend([*call, *past])
        yield outputs
        length, past, accepted = outputs[2], outputs[3:], turn.accepted
