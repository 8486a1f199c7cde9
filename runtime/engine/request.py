"""What goes into the engine and what comes out of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lineahead.errors import InputError, LineaheadError
from lineahead.runtime.constraint import Constraint
from lineahead.runtime.logprobs import TokenLogprobs
from lineahead.runtime.row import Finish
from lineahead.runtime.sampling import SamplingParams


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How an engine shares the model.

    Attributes:
        slots: sequences decoded together at most.
        queue: requests that may wait; more are refused.
        chunk: prompt tokens per call, and the grain of the prefix cache.
        prefill_budget: prompt tokens read between two decoding steps while anything decodes; what a decoding
            row waits for at most.
        prefix_cache_bytes: memory for the states of prompts' beginnings; 0 for none.
        default_timeout_s: deadline of requests that bring none; None for none.
        governed: whether measured costs choose the draft length; otherwise the drafter's most is proposed.
        ignore_position_limit: go on past the length that the model's positions were made for.
    """

    slots: int = 16
    queue: int = 256
    chunk: int = 64
    prefill_budget: int = 64
    prefix_cache_bytes: int = 256 << 20
    default_timeout_s: float | None = None
    governed: bool = True
    ignore_position_limit: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            InputError: naming the setting.
        """
        least = {"slots": 1, "queue": 1, "chunk": 1, "prefill_budget": 1, "prefix_cache_bytes": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(
                    f"{name}={getattr(self, name)} is out of range", hint=f"Use at least {bound}."
                )


@dataclass(frozen=True, kw_only=True)
class Request:
    """One text to continue.

    Attributes:
        tokens: the prompt.
        params: how it is sampled; its stop strings, limits and seed.
        key: who asks; requests of one key wait for one another before they make others wait.
        stream: number of the random stream under the seed (choices of one prompt differ in it).
        timeout_s: seconds from now until it is cut, wherever it is; None for the engine's default.
        draft_nodes: most nodes proposed per step; None for the drafter's most, 0 for plain decoding.
        bias: added to the logits of single tokens.
        constraint: what the text may be.
        logprobs: how many of the best tokens to report beside each token; None reports nothing.
        scope: prompts share cached states only within a scope.
    """

    tokens: tuple[int, ...]
    params: SamplingParams = SamplingParams()  # noqa: RUF009 (frozen)
    key: str = ""
    stream: int = 0
    timeout_s: float | None = None
    draft_nodes: int | None = None
    bias: Mapping[int, float] = field(default_factory=dict)
    constraint: Constraint | None = None
    logprobs: int | None = None
    scope: str = ""


@dataclass(frozen=True, kw_only=True)
class Delta:
    """What one step added to one request; the last one has `finish`.

    Attributes:
        request: its number.
        tokens: new tokens.
        text: text that is now certain (it may lag behind the tokens).
        drafted: for each token, whether it had been proposed.
        rejected: proposed tokens that did not become text.
        logprobs: one per token, when asked for.
        finish: ``eos``, ``stop``, ``length``, ``context``, ``cancelled``, ``timeout``, ``error``, or None.
        error: what went wrong, when `finish` is ``error``.
        cached_tokens: prompt tokens whose state came from the prefix cache.
    """

    request: int
    tokens: tuple[int, ...] = ()
    text: str = ""
    drafted: tuple[bool, ...] = ()
    rejected: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish: Finish | None = None
    error: LineaheadError | None = None
    cached_tokens: int = 0
