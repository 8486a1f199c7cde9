"""Chooses how many nodes to propose from cost and acceptance; keeps a ledger against plain decoding."""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from lineahead.runtime.tree import Tree

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
FIRST_SLOPE = 0.1  # of a plain step, per node, before any size was timed
FIRST_ACCEPTED = 0.8  # hope for a drafter that was never asked; the ledger limits what it costs
RECENT = 0.05  # weight of the newest outcome, once there are many
DEEPER = 4.0  # outcomes of a depth that weigh as much as what the depth before it says
OTHERS = 20.0  # outcomes of a size that weigh as much as what all sizes say together
HYSTERESIS = 0.05  # by so much another size must be faster than the usual one
CREDIT = 8.0  # most plain steps of past gain that may be lost again
UNTIMED = 64  # steps after which plain decoding is timed again


@dataclass
class _Mean:
    """A running mean, recent values weighing more."""

    value: float = 0.0
    count: int = 0

    def saw(self, value: float, recent: float = RECENT) -> None:
        self.count += 1
        self.value += (value - self.value) * max(1 / self.count, recent)

    def believed(self, prior: float, belief: float) -> float:
        """The mean, drawn towards `prior`, which weighs as much as `belief` values."""
        count = min(self.count, 1 / RECENT)
        return (belief * prior + count * self.value) / (belief + count)


@dataclass
class _Arm:
    """One draft size: tokens that it accepted and seconds that its steps took."""

    accepted: _Mean = field(default_factory=_Mean)
    cost: _Mean = field(default_factory=_Mean)

    def took(self, seconds: float) -> None:
        # A step disturbed by other processes must not condemn a size.
        before, known = self.cost.value, self.cost.count
        self.cost.saw(self.limited(seconds), 0.1)
        if known == 1:
            self.cost.value = min(before, seconds)

    def limited(self, seconds: float) -> float:
        """A step's time, without what is not the size's doing."""
        return min(seconds, 1.5 * self.cost.value) if self.cost.count > 1 else seconds


class Governor:
    """Plain decoding unless proposing pays.

    What a size yields is predicted from how often a j-th token was accepted after j - 1 others, in proposals
    of any size, and from its own outcomes as they come; what it costs from its own steps, or on a line
    through those of others. The best ratio is used from the third step on: a drafter that pays is hardly held
    back. A ledger compares the time of steps with proposals with what plain decoding would have needed for
    the same tokens: a step that may overdraw it by more than `tolerance` is not made, so a drafter that does
    not pay costs little more than that.
    """

    def __init__(self, max_nodes: int, *, tolerance: float = 0.02, explore_every: int = 16) -> None:
        """Start without knowledge.

        Args:
            max_nodes: most nodes that the drafter proposes.
            tolerance: share of time that may be lost against plain decoding, exploration included.
            explore_every: steps between trials of a drafter that does not pay.
        """
        self._sizes = [size for size in SIZES if size < max_nodes] + [max_nodes] * (max_nodes > 0)
        self._arms = {size: _Arm() for size in (0, *self._sizes)}
        self._depths: list[_Mean] = [_Mean() for _ in range(max_nodes)]
        self._covered = _Mean()
        self._tolerance, self._explore_every = tolerance, explore_every
        self._balance = self._elapsed = 0.0
        self._steps, self._batch = 0, 0
        self._tried = self._plain_at = 0
        self._usual = max_nodes
        self._observed: list[tuple[int, int]] = []

    def nodes(self, batch: int) -> int:
        """How many nodes to propose in the next step; costs are learnt anew when the batch size changes."""
        if batch != self._batch:
            self._batch = batch
            for arm in self._arms.values():
                arm.cost = _Mean()
            self._balance = 0.0
        self._steps += 1
        plain = self._arms[0].cost
        due = UNTIMED if plain.count > 1 else UNTIMED // 8  # one step may have been disturbed
        if not self._sizes or not plain.count or self._steps - self._plain_at > due:
            return 0
        speeds = {size: self._tokens(size) / self._cost(size) for size in self._sizes}
        if not any(self._arms[size].cost.count for size in self._sizes):
            return self._sizes[0] if self._affordable(self._sizes[0]) else 0
        speeds[self._usual] *= 1 + HYSTERESIS
        order = sorted(self._sizes, key=lambda size: (-speeds[size], size))
        paying = [size for size in order if speeds[size] * plain.value > 1]
        if paying:
            self._usual = paying[0]
        if not paying and self._steps - self._tried < self._explore_every:
            return 0
        if paying and self._steps % self._explore_every == 0:
            paying = [self._neighbour(paying[0]), *paying]
        allowed = [size for size in paying or self._sizes[:1] if self._affordable(size)]
        return allowed[0] if allowed else 0

    def _affordable(self, size: int) -> bool:
        """Whether the ledger stays within the tolerance; of a size that is not known, if all is rejected."""
        plain, arm = self._arms[0].cost.value, self._arms[size]
        tokens = self._tokens(size) if min(arm.accepted.count, arm.cost.count) >= 3 else 1.0
        loss = self._cost(size) - tokens * plain
        return loss - self._balance < self._tolerance * self._elapsed + plain / 4

    def _neighbour(self, size: int) -> int:
        """The size above or below, in turns."""
        place = self._sizes.index(size) + (1 if self._steps // self._explore_every % 2 else -1)
        return self._sizes[min(max(place, 0), len(self._sizes) - 1)]

    def _tokens(self, size: int) -> float:
        """Expected tokens of a step with `size` nodes."""
        expected, chance, share = 0.0, 1.0, FIRST_ACCEPTED
        for depth in self._depths[:size]:
            share = depth.believed(share, DEEPER)
            chance *= share
            expected += chance
        covered = self._covered.believed(1.0, DEEPER)
        return 1 + self._arms[size].accepted.believed(covered * expected, OTHERS)

    def _cost(self, size: int) -> float:
        """Cost of a size; what was never timed is on a line through the nearest size that was."""
        arm, plain = self._arms[size].cost, self._arms[0].cost.value
        if arm.count or not size:
            return arm.value
        timed = [one for one in self._sizes if self._arms[one].cost.count]
        near = min(timed, key=lambda one: abs(one - size), default=0)
        slope = max((self._arms[near].cost.value - plain) / near, 0.0) if near else FIRST_SLOPE * plain
        return plain + slope * size

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
            for depth, mean in enumerate(self._depths[: min(proposed, accepted + 1)], 1):
                mean.saw(accepted >= depth)
        size, seconds = self._size(nodes - 1), draft_s + step_s
        gained = sum(accepted for _, accepted in observed) / len(observed)
        limited = self._arms[size].limited(seconds)
        self._arms[size].took(seconds if size else step_s)
        self._elapsed += seconds
        plain = self._arms[0].cost.value
        if size:
            self._tried = self._steps
            # Rows without a draft, or with a short one, pay for the longest: the mean of all is what it gave.
            self._arms[size].accepted.saw(gained)
            self._covered.saw(sum(proposed > 0 for proposed, _ in observed) / len(observed))
            change = (1 + gained) * plain - limited
        else:
            self._plain_at, change = self._steps, -draft_s
        self._balance = min(self._balance + change, CREDIT * plain)

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
