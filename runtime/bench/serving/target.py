"""A server under test: where it is and what its model is called."""

import http.client
import ipaddress
import json
import re
import socket
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from lineahead.errors import InputError

NAMED = re.compile(r"(?:(?P<name>[\w .+-]+)=)?(?P<url>https?://.+)")
HINT = "Write [NAME=]http://HOST:PORT[#MODEL]."
LOOK_UP_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """One server.

    Attributes:
        name: in tables and plots.
        url: scheme, host and port, and what comes before ``/v1`` in paths.
        model: its name in the API.
        key: API key; none when empty.
    """

    name: str
    url: str
    model: str
    key: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """Of every request."""
        kind = {"Content-Type": "application/json"}
        return kind | ({"Authorization": f"Bearer {self.key}"} if self.key else {})

    @property
    def path(self) -> str:
        """What comes before ``/v1`` in paths."""
        return urlsplit(self.url).path.rstrip("/").removesuffix("/v1")

    def connection(self, timeout_s: float) -> http.client.HTTPConnection:
        """A connection, not yet open."""
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=timeout_s)


def open_target(text: str, *, key: str = "", remote: bool = False) -> Target:
    """Find a server and its model.

    Args:
        text: ``[NAME=]URL[#MODEL]``; without a model's name, the first one that the server lists.
        key: API key.
        remote: allow hosts other than this machine.

    Raises:
        InputError: when the address is malformed, names another machine, or does not answer.
    """
    found = NAMED.fullmatch(text)
    if found is None:
        raise InputError(f"{text!r} is no server", hint=HINT)
    address, _, model = found["url"].partition("#")
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise InputError(f"{address}: {error}", hint=HINT) from error
    if not remote and not _is_local(host):
        raise InputError(
            f"{host} is another machine",
            hint="Load servers of your own only; --remote says that this one is.",
        )
    target = Target(name=found["name"] or _label(parts), url=address, model=model, key=key)
    return target if model else Target(**{**vars(target), "model": _first_model(target)})


def _label(parts: SplitResult) -> str:
    return parts.netloc


def _is_local(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host, None)
    except OSError as error:
        raise InputError(f"{host!r}: {error}", hint=HINT) from error
    return all(ipaddress.ip_address(one[4][0]).is_loopback for one in found)


def _first_model(target: Target) -> str:
    connection = target.connection(LOOK_UP_S)
    try:
        connection.request("GET", f"{target.path}/v1/models", headers=target.headers)
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise InputError(
                f"{target.url}: /v1/models answers {response.status}",
                hint="Check the address and the API key.",
            )
        return str(json.loads(content)["data"][0]["id"])
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"{target.url} does not answer: {error}", hint="Start the server, and wait until it is ready."
        ) from error
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{target.url}: /v1/models is not OpenAI's", hint="Name the model: URL#MODEL."
        ) from error
    finally:
        connection.close()
