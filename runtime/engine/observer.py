"""Who listens to the engine (metrics do), and what it counts itself."""

from dataclasses import dataclass, field

from lineahead.runtime.engine.prefix_cache import PrefixStatistics


class Observer:
    """Told about times as they are measured, in the engine's thread; does nothing by itself."""

    def queued(self, seconds: float) -> None:
        """A request has left the queue after waiting so long."""

    def first_token(self, seconds: float) -> None:
        """A request's first token came so long after it was submitted."""

    def finished(self, finish: str, tokens: int, decode_s: float, total_s: float) -> None:
        """A request has ended, `decode_s` after its first token and `total_s` after it was submitted."""

    def stepped(self, rows: int, tokens: int, seconds: float) -> None:
        """A decoding step of so many rows yielded so many tokens."""


@dataclass(frozen=True, kw_only=True)
class EngineStatistics:
    """A snapshot.

    Attributes:
        state: ``running``, ``draining`` or ``stopped``.
        slots: sequences that can be decoded together.
        active: sequences in the batch or being read.
        waiting: requests in the queue.
        queue: how many may wait.
        submitted: requests accepted since the start.
        refused: requests refused because the queue was full or the engine was draining.
        finished: requests that ended, by reason.
        failed_steps: calls of the model that raised.
        prompt_tokens: prompt tokens read.
        cached_tokens: prompt tokens taken from the prefix cache.
        tokens: tokens generated.
        steps: decoding steps.
        row_steps: verifications, summed over rows.
        row_tokens: tokens they yielded.
        draft_nodes: nodes proposed per row in the last step.
        offered_at: verifications with a proposal at depth d + 1.
        accepted_at: those that accepted it.
        prefix_cache: of the prefix cache.
    """

    state: str
    slots: int
    active: int
    waiting: int
    queue: int
    submitted: int
    refused: int
    finished: dict[str, int]
    failed_steps: int
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    steps: int
    row_steps: int
    row_tokens: int
    draft_nodes: int
    offered_at: tuple[int, ...]
    accepted_at: tuple[int, ...]
    prefix_cache: PrefixStatistics = field(default_factory=PrefixStatistics)
