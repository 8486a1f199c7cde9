"""Counts and times of a decoding run."""

import math
from dataclasses import dataclass, field
from typing import Any

from lineahead.runtime.tree import Tree


@dataclass
class Statistics:
    """Accumulates over the steps of a run. "Row step" means one verification of one sequence.

    Attributes:
        prompt_tokens: tokens of the prompts.
        prefill_s: time of the calls that read prompts.
        ttft_s: time until the first generated token.
        tokens: generated tokens, the first of each sequence included.
        steps: calls that only decoded.
        row_steps: verifications, summed over sequences.
        row_tokens: tokens they yielded.
        accepted: proposed tokens that became text.
        proposed: proposed nodes.
        offered_at: row steps that proposed something at depth d + 1.
        accepted_at: row steps that accepted something there.
        draft_s: time spent proposing.
        verify_s: time in the model, commits included.
        sampling_s: time choosing tokens.
        other_s: layout, text and bookkeeping.
    """

    prompt_tokens: int = 0
    prefill_s: float = 0.0
    ttft_s: float = math.nan
    tokens: int = 0
    steps: int = 0
    row_steps: int = 0
    row_tokens: int = 0
    accepted: int = 0
    proposed: int = 0
    offered_at: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)
    draft_s: float = 0.0
    verify_s: float = 0.0
    sampling_s: float = 0.0
    other_s: float = 0.0

    def record(self, tree: Tree, accepted: int, emitted: int) -> None:
        """Count one row step: `accepted` proposed tokens became text, `emitted` tokens in all."""
        self.row_steps += 1
        self.row_tokens += emitted
        if len(tree) == 1:
            return
        self.accepted += accepted
        self.proposed += len(tree) - 1
        deepest = max(tree.depths)
        while len(self.offered_at) < deepest:
            self.offered_at.append(0)
            self.accepted_at.append(0)
        for depth in range(deepest):
            self.offered_at[depth] += 1
            self.accepted_at[depth] += depth < accepted

    @property
    def tokens_per_step(self) -> float:
        """Tokens per verification, the bonus token included; 1 for plain decoding."""
        return self.row_tokens / self.row_steps if self.row_steps else math.nan

    @property
    def accepted_per_step(self) -> float:
        """Likewise without the bonus token; 0 for plain decoding."""
        return self.accepted / self.row_steps if self.row_steps else math.nan

    @property
    def acceptance_rates(self) -> list[float]:
        """Share of the offers at each depth that were accepted (all shallower ones accepted too)."""
        return [
            hit / offered if offered else math.nan
            for hit, offered in zip(self.accepted_at, self.offered_at, strict=True)
        ]

    @property
    def decode_s(self) -> float:
        """Time of the decoding calls."""
        return self.draft_s + self.verify_s + self.sampling_s + self.other_s

    @property
    def decode_tok_per_s(self) -> float:
        """Tokens that decoding calls yielded, per second."""
        return self.row_tokens / self.decode_s if self.decode_s else math.nan

    @property
    def prefill_tok_per_s(self) -> float:
        """Prompt tokens per second."""
        return self.prompt_tokens / self.prefill_s if self.prefill_s else math.nan

    def as_dict(self) -> dict[str, Any]:
        """For JSON; numbers that do not exist are null."""
        shares = {name: getattr(self, f"{name}_s") for name in ("draft", "verify", "sampling", "other")}
        data: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "steps": self.steps,
            "tokens_per_step": self.tokens_per_step,
            "accepted_per_step": self.accepted_per_step,
            "proposed": self.proposed,
            "accepted": self.accepted,
            "acceptance_rates": self.acceptance_rates,
            "ttft_s": self.ttft_s,
            "prefill_s": self.prefill_s,
            "prefill_tok_per_s": self.prefill_tok_per_s,
            "decode_s": self.decode_s,
            "decode_tok_per_s": self.decode_tok_per_s,
            "time_s": {**shares, "commit": 0.0},
        }
        return {key: _finite(value) for key, value in data.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
