"""Constraints from JSON schemas, by llguidance; masks follow the accepted path: speculation stays exact."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lineahead.errors import BackendError, InputError, needs_package
from lineahead.runtime.artifact import Artifact
from lineahead.runtime.tokenizer import TOKENIZER

ANY_OBJECT: dict[str, Any] = {"type": "object"}
ONE_LINE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class GrammarConstraint:
    """One text under one grammar (a :class:`lineahead.runtime.constraint.Constraint`)."""

    def __init__(self, matcher: Any, vocab: int) -> None:
        """Start at the beginning of the text.

        Args:
            matcher: llguidance's, at its start.
            vocab: tokens of its tokenizer.
        """
        from llguidance.numpy import allocate_token_bitmask

        self._matcher, self._bits = matcher, allocate_token_bitmask(1, vocab)

    @property
    def complete(self) -> bool:
        """Whether nothing may follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self, path: Sequence[int], vocab: int) -> npt.NDArray[np.bool_]:
        """Which tokens may follow the text and `path`; as :meth:`Constraint.allowed`.

        Raises:
            BackendError: when the grammar has become too complex.
        """
        from llguidance.numpy import fill_next_token_bitmask

        for token in path:
            self._matcher.consume_token(token)
        fill_next_token_bitmask(self._matcher, self._bits)
        self._check()
        if path:
            self._matcher.rollback(len(path))
        flags = np.unpackbits(self._bits[0].view(np.uint8), bitorder="little")[:vocab].astype(np.bool_)
        return np.pad(flags, (0, vocab - len(flags)))

    def advance(self, tokens: Sequence[int]) -> None:
        """These tokens have become text."""
        for token in tokens:
            self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise BackendError(
                f"the grammar gave up: {self._matcher.get_error()}", hint="Use a simpler schema."
            )


class Grammars:
    """Compiles schemas for one tokenizer."""

    def __init__(self, artifact: Artifact) -> None:
        """Read the vocabulary.

        Raises:
            BackendError: when llguidance is not installed.
        """
        cure = 'Run `pip install "lineahead[serve]"`.'
        with needs_package("response_format needs llguidance", cure, BackendError):
            from llguidance import LLTokenizer
        text = (artifact.folder / TOKENIZER).read_text(encoding="utf-8")
        self._vocab = artifact.vocab_size
        self._tokenizer = LLTokenizer(text, n_vocab=self._vocab, eos_token=sorted(artifact.eos) or None)

    def json(self, schema: Mapping[str, Any] | None = None) -> GrammarConstraint:
        """A text that is one JSON value of `schema`, on one line; any object when None.

        Raises:
            InputError: when it is no schema, or one that cannot be followed.
        """
        from llguidance import LLMatcher

        try:
            grammar = LLMatcher.grammar_from_json_schema(
                json.dumps(schema if schema is not None else ANY_OBJECT), defaults=ONE_LINE
            )
        except ValueError as error:
            raise InputError(f"response_format: {error}", hint="Give a JSON schema object.") from error
        matcher = LLMatcher(self._tokenizer, grammar)
        if matcher.is_error():
            line = matcher.get_error().strip().splitlines()[0]
            raise InputError(f"response_format: {line}", hint="Use keywords that can be followed.")
        return GrammarConstraint(matcher, self._vocab)
