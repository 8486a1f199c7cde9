"""Feed one text to a session, chunk by chunk."""

from collections.abc import Iterator, Sequence

import numpy as np

from lineahead.runtime.layout import triangle
from lineahead.runtime.session import Session, StepInput, StepOutput


def in_chunks(session: Session, tokens: Sequence[int], chunk: int) -> Iterator[tuple[int, StepOutput]]:
    """Read `tokens` as the session's one row goes on; nothing may be pending before.

    Args:
        session: of one row; the last chunk is pending afterwards.
        tokens: what is read.
        chunk: tokens per call, at least one.

    Yields:
        Tokens of a call, and its result for the last of them.
    """
    before = 0
    for start in range(0, len(tokens), chunk):
        part = np.array([tokens[start : start + chunk]], np.int64)
        nodes = part.shape[1]
        output = session.step(
            StepInput(
                input_ids=part,
                ancestors=triangle(nodes)[None],
                output_index=np.array([[nodes - 1]]),
                accept_index=np.arange(before)[None],
                accept_count=np.array([before]),
            )
        )
        before = nodes
        yield nodes, output
