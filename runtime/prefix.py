"""A text read once and answered from often: its decoding state in a file, and continuations of it.

The state has a constant size, so a file for a hundred thousand tokens is as large as one for a hundred, and a
continuation begins at once.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lineahead.errors import InputError
from lineahead.runtime.drafters import Drafter
from lineahead.runtime.generate import Generator
from lineahead.runtime.reading import in_chunks
from lineahead.runtime.row import Row
from lineahead.runtime.sampling import SamplingParams, stream
from lineahead.runtime.speculate import Decoder, Event
from lineahead.runtime.tokenizer import TextStream

MARK = "\u0001"


def chat_parts(generator: Generator, document: str, question: str = MARK) -> tuple[list[int], list[int]]:
    """Tokens of a user's turn that begins with `document`, and of what follows it.

    Args:
        generator: a loaded model with a chat template.
        document: the beginning of the turn; may be empty when only what follows is wanted.
        question: the rest of the turn.

    Returns:
        tokens up to the end of the document; tokens of the question and of the start of the answer.

    Raises:
        InputError: when there is no chat template, or it does not repeat the user's text as it is.
    """
    text = generator.tokenizer.render([{"role": "user", "content": document + MARK}])
    head, mark, tail = text.partition(MARK)
    if not mark:
        raise InputError(
            "the chat template does not repeat the user's text", hint="Save and continue with --raw."
        )
    encode = generator.tokenizer.encode
    return encode(head, special=False), encode(question + tail, special=False)


def read_prefix(
    generator: Generator,
    tokens: Sequence[int],
    *,
    chunk: int | None = None,
    ignore_position_limit: bool = False,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> None:
    """Read `tokens` into the session's state as its only row, all of them committed.

    Args:
        generator: a loaded model.
        tokens: at least one.
        chunk: tokens per call; the session's own number when None.
        ignore_position_limit: go on past the length that the model's positions were made for.
        progress: called with a name, tokens read and in all.

    Raises:
        InputError: when there is nothing to read, or more than the positions cover.
    """
    generator.artifact.require_decoder("a saved prefix")
    limit = generator.position_limit(ignore=ignore_position_limit)
    if not tokens:
        raise InputError("the text has no tokens", hint="Give at least one token.")
    if limit is not None and len(tokens) >= limit:
        raise InputError(
            f"the text has {len(tokens)} tokens, the model's positions end at {limit}",
            hint="Shorten it, or pass --ignore-position-limit (quality may suffer).",
        )
    session, nodes = generator.session, 0
    session.reset(1)
    done = 0
    for nodes, _ in in_chunks(session, tokens, chunk or session.chunk):
        done += nodes
        progress("reading", done, len(tokens))
    session.flush(np.arange(nodes)[None], np.array([nodes]))


def save_prefix(generator: Generator, tokens: Sequence[int], path: Path) -> None:
    """Write the state that :func:`read_prefix` made, with its tokens.

    Raises:
        StorageError: when it cannot be written.
    """
    generator.session.save_state(path, tokens=[tokens])


def continue_prefix(
    generator: Generator,
    path: Path,
    prompt: Sequence[int],
    params: Sequence[SamplingParams],
    *,
    drafter: Drafter | None = None,
    ignore_position_limit: bool = False,
) -> Iterator[Event]:
    """Load a saved state, fork it once for each of `params`, and decode what follows `prompt`.

    Args:
        generator: the model that the state belongs to, on any backend.
        path: a file written by :func:`save_prefix`.
        prompt: tokens after the saved text, at least one.
        params: of each continuation; the events' requests number them.
        drafter: instead of the generator's own.
        ignore_position_limit: go on past the length that the model's positions were made for.

    Raises:
        ArtifactError: when the file is damaged, or belongs to another model.
        InputError: when it holds more than one text, or there is nothing to continue with.
    """
    generator.artifact.require_decoder("a saved prefix")
    session = generator.session
    texts = session.load_state(path)
    if len(texts) != 1 or session.length.tolist() != [len(texts[0])]:
        raise InputError(
            f"{path}: holds the state of {len(session.length)} texts and the tokens of {len(texts)}",
            hint="Save it with `lineahead prefix`.",
        )
    if not prompt:
        raise InputError("nothing follows the saved text", hint="Give at least one token.")
    tokens = [*texts[0], *generator.encode(prompt)]
    limit = generator.position_limit(ignore=ignore_position_limit)
    if limit is not None and len(tokens) >= limit:
        raise InputError(
            f"{len(tokens)} tokens, the model's positions end at {limit}",
            hint="Pass --ignore-position-limit (quality may suffer).",
        )
    session.fork([0] * len(params))
    rows = [
        Row(
            request=request,
            tokens=list(tokens),
            prompt=len(tokens),
            params=one,
            random=stream(one, request),
            eos=generator.artifact.eos,
            limit=limit,
            text=TextStream(generator.tokenizer, tokens, one.stop),
            fed=len(texts[0]),
        )
        for request, one in enumerate(params)
    ]
    used = drafter or generator.drafter
    decoder = Decoder(session, used, rows=rows)
    generator.statistics = decoder.statistics
    try:
        yield from decoder.run()
    finally:
        used.forget([row.request for row in rows])
