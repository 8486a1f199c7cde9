"""Which proposed tokens become text. Greedy and sampling leave the output unchanged; `typical` does not."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lineahead.errors import InputError
from lineahead.runtime.sampling import Probabilities, SamplingParams, draw
from lineahead.runtime.tree import Tree


class Scores(Protocol):
    """What the target says at the nodes of one tree, fetched only for nodes on the accepted path."""

    def argmax(self, node: int) -> int:
        """Best next token after `node`."""

    def distribution(self, node: int, params: SamplingParams) -> Probabilities:
        """Probabilities ``[V]`` of the token after `node`, truncated."""


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """The outcome for one tree.

    Attributes:
        path: accepted nodes in order, without the root.
        token: the token after the last of them, which the target chose itself (the bonus token).
    """

    path: tuple[int, ...]
    token: int

    def tokens(self, tree: Tree) -> list[int]:
        """The new text: accepted tokens, then the bonus token."""
        return [*(tree.tokens[node] for node in self.path), self.token]


Acceptance = Callable[[Tree, Scores, SamplingParams, np.random.Generator], Accepted]


def greedy(tree: Tree, scores: Scores, params: SamplingParams, random: np.random.Generator) -> Accepted:
    """Follow the target's best token as long as it was proposed. Lossless for temperature 0."""
    path: list[int] = []
    node = 0
    while True:
        token = scores.argmax(node)
        child = _child(tree, node, token)
        if child is None:
            return Accepted(path=tuple(path), token=token)
        path.append(child)
        node = child


def sampling(tree: Tree, scores: Scores, params: SamplingParams, random: np.random.Generator) -> Accepted:
    """Accept so that the emitted tokens are distributed exactly as if drawn from the target one by one.

    At a node whose children were *drawn* from q: try them in order, accept child x with probability min(1,
    p(x) / q(x)), on rejection continue with p = norm(max(0, p - q)); when none is left, draw from that p.
    For one child this is speculative sampling, for siblings it is recursive rejection.

    At a node whose children were *chosen* (top-k of a head, n-gram lookup) q is a point mass, min(1, p/q) is
    p(x) and the residual is p without x: together that is a draw from p that follows the child it hits. It
    takes one uniform number per token in order, so with one seed the text is the same as without proposals,
    token for token.

    Args:
        tree: the proposal; its `draws` were truncated with the same `params`.
        scores: the target at its nodes.
        params: of the request.
        random: the request's stream.

    Source: Leviathan et al., 2023, arXiv:2211.17192, theorem 1; Chen et al., 2023, arXiv:2302.01318,
    algorithm 2; Miao et al., 2024, arXiv:2305.09781, algorithm 2 (siblings).
    """
    path: list[int] = []
    node = 0
    while True:
        target = scores.distribution(node, params)
        if node in tree.draws:
            child, target = _try_drawn(tree, node, target, random)
            token = -1 if child is not None else draw(target, random.random())
        else:
            token = draw(target, random.random())
            child = _child(tree, node, token)
        if child is None:
            return Accepted(path=tuple(path), token=token)
        path.append(child)
        node = child


def _try_drawn(
    tree: Tree, node: int, target: Probabilities, random: np.random.Generator
) -> tuple[int | None, Probabilities]:
    """Recursive rejection over the children of `node`: the accepted one or None, and what is left of p."""
    draft = tree.draws[node]
    for child in tree.children(node):
        token = tree.tokens[child]
        if draft[token] <= 0:
            raise InputError(
                f"token {token} was proposed where the draft distribution gives it no probability",
                hint="Truncate the draft distribution before drawing from it, and pass the truncated one.",
            )
        if random.random() * draft[token] < target[token]:
            return child, target
        target = _residual(target, draft)
        if not tree.replacement:
            draft = _without(draft, token)
    return None, target


def _residual(target: Probabilities, draft: Probabilities) -> Probabilities:
    """norm(max(0, p - q)); p itself when p = q, where a rejection has probability zero."""
    rest = np.maximum(target - draft, 0.0)
    total = rest.sum()
    return np.asarray(rest / total) if total > 0 else target


def _without(draft: Probabilities, token: int) -> Probabilities:
    """The draft distribution given that `token` is not drawn again."""
    rest = draft.copy()
    rest[token] = 0.0
    total = rest.sum()
    return np.asarray(rest / total) if total > 0 else rest


def typical(epsilon: float = 0.3, delta: float = 0.09) -> Acceptance:
    """LOSSY: accept a proposed token whose probability exceeds min(epsilon, delta * exp(-entropy)).

    The output is *not* distributed like the target's; use it by name only. The longest accepted path wins.

    Args:
        epsilon: hard threshold on the probability.
        delta: threshold relative to exp(-entropy).

    Source: Cai et al., 2024, arXiv:2401.10774, section 2.3.1.
    """

    def accept(tree: Tree, scores: Scores, params: SamplingParams, random: np.random.Generator) -> Accepted:
        def longest(node: int) -> tuple[int, ...]:
            weights = scores.distribution(node, params)
            held = weights[weights > 0]
            threshold = min(epsilon, delta * float(np.exp((held * np.log(held)).sum())))
            paths = [
                (child, *longest(child))
                for child in tree.children(node)
                if weights[tree.tokens[child]] > threshold
            ]
            return max(paths, key=len, default=())

        path = longest(0)
        last = path[-1] if path else 0
        return Accepted(path=path, token=draw(scores.distribution(last, params), random.random()))

    return accept


def lossless(tree: Tree, scores: Scores, params: SamplingParams, random: np.random.Generator) -> Accepted:
    """:func:`greedy` at temperature 0, :func:`sampling` otherwise."""
    return (greedy if params.greedy else sampling)(tree, scores, params, random)


def _child(tree: Tree, node: int, token: int) -> int | None:
    """The child of `node` that carries `token`."""
    for child in tree.children(node):
        if tree.tokens[child] == token:
            return child
    return None
