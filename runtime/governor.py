"""Chooses how many nodes to propose from cost and acceptance; keeps a ledger against plain decoding."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from lineahead.runtime.tree import Tree

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
FIRST_SLOPE = 0.1


@dataclass
class _Arm:
    """Running means of one draft size, recent steps weighing more."""

    tokens: float = 1.0
    cost_s: float = 0.0
    tried: int = 0
    timed: int = 0

    def saw(self, tokens: float) -> None:
        self.tried += 1
        self.tokens += (tokens - self.tokens) * max(1 / self.tried, 0.05)

    def took(self, seconds: float) -> None:
        self.timed += 1
        # A step disturbed by other processes must not condemn a size.
        limited = min(seconds, 3 * self.cost_s) if self.timed > 2 else seconds
        self.cost_s += (limited - self.cost_s) * max(1 / self.timed, 0.1)

    @property
    def known(self) -> bool:
        return self.tried >= 3 and self.timed >= 3

    @property
    def speed(self) -> float:
        return self.tokens / self.cost_s if self.cost_s else 0.0


class Governor:
    """Plain decoding unless proposing pays.

    Every draft size has running means of tokens per step and seconds per step. The best ratio is used,
    neighbours are tried now and then, small sizes first. A ledger compares the time spent with what plain
    decoding would have needed for the same tokens: a step that is expected to overdraw it by more than
    `tolerance` is not made, so a useless drafter costs little more than that.
    """

    def __init__(self, max_nodes: int, *, tolerance: float = 0.02, explore_every: int = 24) -> None:
        """Start without knowledge.

        Args:
            max_nodes: most nodes that the drafter proposes.
            tolerance: share of time that may be lost against plain decoding, exploration included.
            explore_every: steps between trials of another size.
        """
        self._sizes = [size for size in SIZES if size < max_nodes] + [max_nodes] * (max_nodes > 0)
        self._arms = {size: _Arm() for size in (0, *self._sizes)}
        self._tolerance, self._explore_every = tolerance, explore_every
        self._spent = self._earned = 0.0
        self._steps, self._batch = 0, 0
        self._observed: list[tuple[int, int]] = []

    def nodes(self, batch: int) -> int:
        """How many nodes to propose in the next step; costs are learnt anew when the batch size changes."""
        if batch != self._batch:
            self._batch = batch
            for arm in self._arms.values():
                arm.timed, arm.cost_s = 0, 0.0
        self._steps += 1
        if not self._sizes or self._arms[0].timed < 3:
            return 0
        unknown = [size for size in self._sizes if not self._arms[size].known]
        best = max(self._arms, key=lambda size: self._arms[size].speed)
        choice = best
        if unknown and (self._steps % 2 or best == 0):
            choice = unknown[0]
        elif self._steps % self._explore_every == 0:
            choice = self._neighbour(best)
        return choice if self._affordable(choice) else 0

    def _affordable(self, size: int) -> bool:
        """Whether the ledger stays within the tolerance if the step goes as expected."""
        plain, arm = self._arms[0].cost_s, self._arms[size]
        tokens = arm.tokens if arm.known else 1.0
        loss = self._spent - self._earned + self._expected_cost(size) - tokens * plain
        return size == 0 or loss < self._tolerance * self._earned + plain / 2

    def _expected_cost(self, size: int) -> float:
        """Cost of a size; what was never timed is extrapolated from the nearest size that was."""
        arm, plain = self._arms[size], self._arms[0].cost_s
        if arm.timed:
            return arm.cost_s
        near = max((one for one in self._sizes if one < size and self._arms[one].timed), default=0)
        slope = max((self._arms[near].cost_s - plain) / near, 0.0) if near else FIRST_SLOPE * plain
        return plain + slope * size

    def _neighbour(self, size: int) -> int:
        """The size above or below, in turns; plain decoding is below the smallest."""
        order = [0, *self._sizes]
        place = order.index(size) + (1 if self._steps // self._explore_every % 2 else -1)
        return order[min(max(place, 0), len(order) - 1)]

    def observe(self, tree: Tree, accepted: int) -> None:
        """One row of a step: what was proposed and how much of it was accepted."""
        self._observed.append((len(tree) - 1, accepted))

    def timed(self, nodes: int, draft_s: float, step_s: float) -> None:
        """The step as a whole, after its rows.

        Args:
            nodes: T of the call.
            draft_s: time spent proposing.
            step_s: everything else.
        """
        observed, self._observed = self._observed, []
        if not observed:
            return
        for proposed, accepted in observed:
            if proposed:
                self._arms[self._size(proposed)].saw(accepted + 1)
        self._arms[self._size(nodes - 1)].took(draft_s + step_s)
        self._spent += draft_s + step_s
        self._earned += self._arms[0].cost_s * sum(accepted + 1 for _, accepted in observed) / len(observed)

    def _size(self, nodes: int) -> int:
        """The arm that a number of nodes belongs to."""
        return 0 if nodes <= 0 else min(self._sizes, key=lambda size: abs(size - nodes))


@dataclass(frozen=True, kw_only=True)
class VerifyCost:
    """Measured cost of one call by number of nodes.

    Attributes:
        seconds: median seconds per call, by T.
    """

    seconds: dict[int, float]

    def ratio(self, nodes: int) -> float:
        """Cost of T nodes in plain steps."""
        return self.seconds[nodes] / self.seconds[1]

    def needed_acceptance(self, nodes: int) -> float:
        """Tokens per step from which T nodes beat plain decoding (without the draft's own cost)."""
        return self.ratio(nodes)


def measure(
    call: Callable[[int], float], *, sizes: tuple[int, ...] = (1, 2, 3, 5, 9, 16), repeats: int = 5
) -> VerifyCost:
    """Time calls of every size, interleaved so that a disturbance hits all of them.

    Args:
        call: runs one call with T nodes and returns its seconds.
        sizes: values of T.
        repeats: calls per size, of which the median counts.
    """
    taken: dict[int, list[float]] = {size: [] for size in sizes}
    for size in sizes:
        call(size)
    for _ in range(repeats):
        for size in sizes:
            taken[size].append(call(size))
    return VerifyCost(seconds={size: median(times) for size, times in taken.items()})
