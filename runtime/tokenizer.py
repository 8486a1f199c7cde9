"""Text to tokens and back without transformers: ``tokenizer.json``, chat template, incremental decoding."""

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as FastTokenizer

from lineahead.errors import ArtifactError, InputError
from lineahead.recipes.json_file import read_object

TOKENIZER, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
CONTEXT = 8
UNFINISHED = "\ufffd"


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """One kind of error for what tokenizers raises: bare Exception, and panics that are not even that."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise ArtifactError(
            f"{path}: damaged: {error}", hint="Copy it from the original checkpoint."
        ) from error


class Tokenizer:
    """The tokenizer of an artifact folder.

    Attributes:
        special: names of the special tokens (``bos_token``, ``eos_token``, ...) to their text.
        template: the chat template, or None.
    """

    def __init__(self, folder: Path) -> None:
        """Read the folder.

        Raises:
            ArtifactError: when ``tokenizer.json`` is missing or damaged.
        """
        path = folder / TOKENIZER
        if not path.is_file():
            raise ArtifactError(
                f"{folder}: no {TOKENIZER}",
                hint="Copy it from the original checkpoint (`AutoTokenizer...save_pretrained` writes it).",
            )
        self._path = path
        with _damage(path):
            self._fast = FastTokenizer.from_str(path.read_text(encoding="utf-8"))
        self._fast.no_padding()
        self._fast.no_truncation()
        config = _config(folder)
        self.special = {
            key: _text(config[key]) for key in sorted(config) if key.endswith("_token") and config[key]
        }
        self.template = _template(folder, config)

    def spells_as(self, other: "Tokenizer") -> bool:
        """Whether both give every token the same number."""
        mine, theirs = (one._fast.get_vocab(with_added_tokens=True) for one in (self, other))
        return bool(mine == theirs)

    @property
    def size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._fast.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Tokens of `text`; `special` adds what the tokenizer puts around a text (such as BOS).

        Raises:
            ArtifactError: when the tokenizer cannot spell the text (no token for a letter, none for unknown).
        """
        with _damage(self._path):
            return list(self._fast.encode(text, add_special_tokens=special).ids)

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Text of `tokens`; `special` keeps special tokens visible.

        Raises:
            ArtifactError: when the tokenizer's decoder cannot take its own tokens.
        """
        with _damage(self._path):
            return str(self._fast.decode(list(tokens), skip_special_tokens=not special))

    def token(self, text: str) -> int | None:
        """The token spelled exactly `text`, or None."""
        found = self._fast.token_to_id(text)
        return None if found is None else int(found)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, reply: bool = True, **variables: Any
    ) -> list[int]:
        """Tokens of a conversation; arguments and errors as :meth:`render`."""
        return self.encode(self.render(messages, reply=reply, **variables), special=False)

    def render(self, messages: Sequence[Mapping[str, Any]], *, reply: bool = True, **variables: Any) -> str:
        """Text of a conversation under the model's own chat template.

        Args:
            messages: each with ``role`` and ``content``.
            reply: end with the start of the assistant's turn.
            variables: more template variables (``tools``, ...).

        Raises:
            InputError: when there is no template, or it refuses the messages.
        """
        if self.template is None:
            raise InputError(
                "the tokenizer has no chat template", hint="Use a plain prompt, or an instruct model."
            )
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            return environment.from_string(self.template).render(
                messages=list(messages), add_generation_prompt=reply, **{**self.special, **variables}
            )
        except (TemplateError, SecurityError, TypeError) as error:
            raise InputError(
                f"the chat template refused the messages: {error}", hint="Check roles and content."
            ) from error


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        return {}
    return read_object(path, error=ArtifactError, hint="Copy it from the original checkpoint.")


def _text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The file beside the tokenizer, else the config's; of several, the one called ``default``."""
    path = folder / TEMPLATE
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    found = config.get("chat_template")
    if isinstance(found, list):
        named = [one for one in found if isinstance(one, dict) and one.get("name") == "default"]
        found = named[0].get("template") if named else None
    return found if isinstance(found, str) else None


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


class TextStream:
    """Turns tokens into text as they arrive, holds back what may still change, and cuts at stop strings.

    Held back: bytes that do not make a character yet, and a tail that may be the beginning of a stop string.

    Attributes:
        text: everything released so far.
        stopped: whether a stop string was found; `text` ends before it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        """Start after `prompt`, whose last tokens decide how the first new one is spaced."""
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._tokens = list(prompt[-CONTEXT:])
        self._begin, self._read = 0, len(self._tokens)
        self._held, self.text, self.stopped = "", "", False

    def push(self, tokens: Sequence[int]) -> str:
        """Add tokens; returns the text that is now certain."""
        self._tokens.extend(tokens)
        return self._release(self._decode(final=False), final=False)

    def finish(self) -> str:
        """No more tokens will come; returns the rest."""
        return self._release(self._decode(final=True), final=True)

    def _decode(self, *, final: bool) -> str:
        """Decode from a few tokens back, and return what the new ones add."""
        if self._read == len(self._tokens):
            return ""
        before = self._tokenizer.decode(self._tokens[self._begin : self._read])
        after = self._tokenizer.decode(self._tokens[self._begin :])
        if after.endswith(UNFINISHED) and not final:
            return ""
        self._begin, self._read = max(self._read - CONTEXT, 0), len(self._tokens)
        if self._begin > 64:
            self._tokens = self._tokens[self._begin :]
            self._begin, self._read = 0, len(self._tokens)
        return after[len(before) :]

    def _release(self, new: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        self._held += new
        found = [(place + len(stop), place) for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if found:  # the one that is complete first, so that it does not matter how many tokens come at once
            ready, self.stopped = self._held[: min(found)[1]], True
        else:
            ready = self._held if final else self._held[: len(self._held) - self._tail()]
        self._held = self._held[len(ready) :]
        self.text += ready
        return ready

    def _tail(self) -> int:
        """Length of the longest tail of the held text that begins a stop string."""
        lengths = [
            size
            for stop in self._stop
            for size in range(1, min(len(stop) - 1, len(self._held)) + 1)
            if self._held.endswith(stop[:size])
        ]
        return max(lengths, default=0)
