"""What `bench serve` is asked to do."""

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lineahead.errors import InputError
from lineahead.runtime.bench.prompts import read_prompts
from lineahead.runtime.bench.serving.figures import Targets

CLIENTS = (1, 16)
SHARES = (0.25, 0.5, 0.75, 0.9, 1.1)


@dataclass(frozen=True, kw_only=True)
class ServeRequest:
    """Loads and what counts as good.

    Attributes:
        prompts: files, as :func:`read_prompts` takes them; each prompt becomes a chat of one turn.
        longest: characters of a prompt at most; longer ones are left out.
        clients: closed loads.
        rates: open loads, in requests per second.
        rising: further open loads: SHARES of what the last closed load reached.
        requests: of each load.
        max_tokens: of an answer.
        body: further fields of every request.
        targets: when an answer is good.
        warmup: requests before each server's first load, not measured.
        seed: of the arrivals and the order of the prompts.
        timeout_s: longest silence before a request is given up.
    """

    prompts: tuple[Path, ...]
    longest: int = 4000
    clients: tuple[int, ...] = CLIENTS
    rates: tuple[float, ...] = ()
    rising: bool = False
    requests: int = 64
    max_tokens: int = 128
    body: Mapping[str, Any] = field(default_factory=dict)
    targets: Targets = Targets(ttft_s=1.0, tpot_s=0.1)  # noqa: RUF009 (frozen)
    warmup: int = 4
    seed: int = 0
    timeout_s: float = 300.0

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            InputError: naming the value.
        """
        positive = {
            "requests": (self.requests,),
            "max_tokens": (self.max_tokens,),
            "concurrency": self.clients,
            "rate": self.rates,
            "timeout": (self.timeout_s,),
        }
        for name, values in positive.items():
            if not all(value > 0 for value in values):
                raise InputError(f"--{name}: {min(values)} is out of range", hint="Use more than 0.")
        if not self.clients and not self.rates:
            raise InputError("no load", hint="Give --concurrency or --rate.")
        if self.rising and not self.clients:
            raise InputError(
                "--rising without --concurrency", hint="Give both: one is the measure of the other."
            )

    def texts(self) -> list[str]:
        """All prompts of all files that are short enough.

        Raises:
            InputError: when there are none, or a file cannot be read.
        """
        found = [text for path in self.prompts for text in read_prompts(path) if len(text) <= self.longest]
        if not found:
            raise InputError(
                f"no prompt of at most {self.longest} characters", hint="Give --prompts another file."
            )
        return found

    def bodies(self) -> Iterator[dict[str, Any]]:
        """Requests without end: the prompts in a seeded order, which every load begins anew."""
        texts = self.texts()
        random.Random(self.seed).shuffle(texts)
        common = {"max_tokens": self.max_tokens, "temperature": 0.0, **self.body}
        for text in itertools.cycle(texts):
            yield {"messages": [{"role": "user", "content": text}], **common}
