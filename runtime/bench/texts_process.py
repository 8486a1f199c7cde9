"""Greedy texts of one backend beside another's, and how near the first difference was.

``python -m lineahead.runtime.bench.texts_process ARTIFACT REQUEST.json`` prints one JSON object and ends with
1 when a text differs. The request is ``{"prompts": [...], "tokens": 64, "reference": {}, "judged": {...}}``;
`reference` and `judged` are arguments of ``Generator.load``, such as ``{"backend": "tensorrt"}``, or with a
draft ``{"backend": "tensorrt", "drafter": "recurrent", "draft_nodes": 4}``.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lineahead.runtime.generate import Generator, Prompt
from lineahead.runtime.sampling import SamplingParams
from lineahead.runtime.statistics import Statistics
from lineahead.runtime.verify import read


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Where two texts part.

    Attributes:
        prompt: number of the prompt.
        position: number of the generated token.
        reference: the reference's token.
        judged: the other one.
        margin: logit of `reference` minus logit of `judged`, by the reference.
        rank: how many tokens the reference prefers to `judged`; 1 is a change between the best two.
    """

    prompt: int
    position: int
    reference: int
    judged: int
    margin: float
    rank: int


@dataclass
class Tally:
    """What decoding took, prompts apart.

    Attributes:
        drafter: name of what proposed.
        tokens: decoded, end-of-sequence tokens included.
        steps: calls of the model.
        proposed: tokens that were proposed.
        accepted: of them, those that became text.
        seconds: of the steps.
    """

    drafter: str
    tokens: int = 0
    steps: int = 0
    proposed: int = 0
    accepted: int = 0
    seconds: float = 0.0

    def add(self, seen: Statistics) -> None:
        """Count one run."""
        self.tokens += seen.row_tokens
        self.steps += seen.steps
        self.proposed += seen.proposed
        self.accepted += seen.accepted
        self.seconds += seen.decode_s


def differences(
    reference: Generator,
    judged: Generator,
    prompts: Sequence[Prompt],
    tokens: int,
    tallies: Sequence[Tally] = (),
) -> list[Difference]:
    """Decode every prompt alone with both, and look at the reference's logits where they part.

    Args:
        reference: whose text is right.
        judged: of the same artifact.
        prompts: texts or tokens.
        tokens: decoded for each.
        tallies: of both, added to.
    """
    found, params = [], SamplingParams(max_tokens=tokens)
    for number, prompt in enumerate(prompts):
        given = reference.encode(prompt)
        left, right = (one.generate([given], params)[0].tokens for one in (reference, judged))
        for tally, one in zip(tallies, (reference, judged), strict=False):
            tally.add(one.statistics)
        at = next((i for i, (x, y) in enumerate(zip(left, right, strict=False)) if x != y), None)
        if at is None:
            continue
        logits = read(reference.session, [*given, *left[:at]], 1)
        wanted, got = left[at], right[at]
        found.append(
            Difference(
                prompt=number,
                position=at,
                reference=wanted,
                judged=got,
                margin=float(logits[wanted] - logits[got]),
                rank=int((logits > logits[got]).sum()),
            )
        )
    return found


def main() -> int:
    """Read the request and print ``{prompts, tokens, reference, judged, decoding, differences}``."""
    folder, request = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    reference, judged = (Generator.load(folder, **request[name]) for name in ("reference", "judged"))
    tallies = [Tally(drafter=one.drafter.name) for one in (reference, judged)]
    found = differences(reference, judged, request["prompts"], request["tokens"], tallies)
    print(
        json.dumps(
            {
                "prompts": len(request["prompts"]),
                "tokens": request["tokens"],
                "reference": asdict(reference.session.info),
                "judged": asdict(judged.session.info),
                "decoding": dict(zip(("reference", "judged"), map(asdict, tallies), strict=True)),
                "differences": [asdict(one) for one in found],
            }
        )
    )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
