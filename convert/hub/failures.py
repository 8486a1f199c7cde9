"""What can go wrong with a Hub: waited out where waiting helps, else one line; tokens are never shown."""

import email.utils
import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

from huggingface_hub import constants, errors, get_token

from lineahead.errors import HubError, LineaheadError

Result = TypeVar("Result")
ATTEMPTS = 6
LONGEST_WAIT_S = 600.0
AGAIN = (429, 500, 502, 503, 504)
REFUSED = (429, 503)  # the server says that it did nothing
HIDDEN = "<token>"
logger = logging.getLogger(__name__)
# The exceptions of the HTTP library below huggingface_hub, whichever it is.
TRANSPORT = cast(type[Exception], errors.HfHubHTTPError.__bases__[0])
_SIGNED = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]+")
_LOGIN = "Log in with `hf auth login`, or set HF_TOKEN."


def patiently(call: Callable[[], Result], what: str, *, twice: bool = True) -> Result:
    """Call; after a rate limit, a server's fault or a lost connection wait and call again.

    Args:
        call: what to do; done again from the start.
        what: it is, for the log.
        twice: whether doing it twice is harmless, so that it may be done again when the answer was lost.

    Raises:
        HubError: when the server asks for more than ten minutes.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except LineaheadError:
            raise
        except (TRANSPORT, RuntimeError) as error:
            cause = _cause(error)
            if attempt == ATTEMPTS or not may_pass(cause, twice=twice):
                raise
            wait = _retry_after(cause)
            if wait is None:
                wait = min(2.0**attempt, 30.0) * random.uniform(0.5, 1.0)
            if wait > LONGEST_WAIT_S:
                raise HubError(
                    f"{what}: the Hub asks to wait {wait:.0f} s",
                    hint="Run the same command again later: finished uploads are kept.",
                ) from error
            logger.warning("%s: %s; again in %.0f s", what, describe(cause), wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def may_pass(error: BaseException, *, twice: bool = True) -> bool:
    """Whether trying again may help: rate limits, server faults, lost connections."""
    status = status_of(error)
    if status is not None:
        return status in (AGAIN if twice else REFUSED)
    return twice and isinstance(error, TRANSPORT) and not isinstance(error, errors.OfflineModeIsEnabled)


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an error that the Hub answered with."""
    return error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None


def _retry_after(error: BaseException) -> float | None:
    if not isinstance(error, errors.HfHubHTTPError):
        return None
    value = error.response.headers.get("Retry-After")
    if value is None:
        return None
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _cause(error: BaseException) -> BaseException:
    """What lies below huggingface_hub's "Error while uploading"."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def describe(error: BaseException) -> str:
    """An error in one line, without tokens and signed links."""
    if isinstance(error, errors.HfHubHTTPError):
        said = error.server_message or error.response.reason_phrase
        return shown(f"status {error.response.status_code}: {' '.join(said.split())[:200]}")
    lines = str(error).strip().splitlines()
    return shown(lines[0][:200]) if lines else type(error).__name__


def shown(text: str) -> str:
    """`text` without the token, and without the queries of links, which can be signatures."""
    token = get_token()
    if token:
        text = text.replace(token, HIDDEN)
    return _SIGNED.sub(r"\1", text)


class _Hide(logging.Filter):
    """Keeps tokens and signed links out of every log line."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = shown(record.getMessage()), None
        return True


@contextmanager
def hub_errors(repo: str, *, writing: bool = False) -> Iterator[None]:
    """Within it, what the Hub client raises becomes a one-line error; logs are free of tokens.

    Args:
        repo: the repository, as named by the user.
        writing: whether it was to be written.

    Raises:
        HubError: with what to do.
    """
    hide = _Hide()
    handlers = [*logging.getLogger().handlers, *logging.getLogger("huggingface_hub").handlers]
    for handler in handlers:
        handler.addFilter(hide)
    try:
        yield
    except LineaheadError:
        raise
    except (TRANSPORT, RuntimeError, ValueError, OSError) as error:
        found = _explained(repo, _cause(error), writing=writing)
        if found is None:
            raise
        raise found from None
    finally:
        for handler in handlers:
            handler.removeFilter(hide)


def _explained(repo: str, error: BaseException, *, writing: bool) -> HubError | None:
    """The error for people, or None for what is not the Hub's doing."""
    if isinstance(error, errors.HFValidationError):
        return HubError(f"{repo}: not a repository name", hint="Write it as owner/name.")
    if isinstance(error, errors.OfflineModeIsEnabled) or (
        constants.is_offline_mode() and isinstance(error, errors.LocalEntryNotFoundError)
    ):
        return HubError(
            f"{repo}: HF_HUB_OFFLINE is set" + ("" if writing else ", and it is not in the Hub cache"),
            hint="Unset HF_HUB_OFFLINE and run the command again.",
        )
    if isinstance(error, errors.GatedRepoError):
        return HubError(
            f"{repo}: its owner asks for an agreement",
            hint="Accept it on the model's page, then run `hf auth login`.",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{repo}: no such revision", hint="Check --revision on the model's page.")
    status = status_of(error)
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        if get_token() is None:
            return HubError(f"{repo}: not there, or private, and no token was found", hint=_LOGIN)
        return HubError(
            f"{repo}: not there, or the token does not reach it: {describe(error)}",
            hint="Check the name; for a private repository use a token of a member: `hf auth login`.",
        )
    if status == 403:
        return HubError(
            f"{repo}: forbidden: {describe(error)}",
            hint="Use a token with write access, or push to a repository of your own."
            if writing
            else "Use a token with read access to this repository.",
        )
    if status is not None:
        again = status in AGAIN
        return HubError(
            f"{repo}: the Hub answered {describe(error)}",
            hint="Run the same command again later: finished uploads are kept."
            if again
            else "See the Hub's message.",
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        error = error.__cause__ or error
    if isinstance(error, (TRANSPORT, errors.LocalEntryNotFoundError)):
        return HubError(
            f"{repo}: {constants.ENDPOINT} cannot be reached ({type(error).__name__})",
            hint="Check the network and HF_ENDPOINT, then run again: finished uploads are kept.",
        )
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        lines = " ".join(str(error).split())
        return HubError(f"{repo}: {shown(lines)[:300]}", hint="See the Hub's message.")
    return None
