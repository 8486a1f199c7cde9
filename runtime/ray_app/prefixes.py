"""Which replica a prompt goes to: the one that has read its beginning before, unless that one is full."""

import hashlib
import json
from collections.abc import Mapping, Sequence


def prefix_key(body: bytes, characters: int) -> str:
    """A name for the beginning of a request's prompt; empty when there is none.

    Conversations keep their key from turn to turn, and prompts behind the same long system message share one.

    Args:
        body: of the HTTP request; whatever is wrong with it is the replica's to say.
        characters: of the prompt that count.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(asked, dict):
        return ""
    messages, prompt = asked.get("messages"), asked.get("prompt")
    if isinstance(messages, list):
        said = [(one.get("role"), one.get("content")) for one in messages if isinstance(one, dict)]
        text = json.dumps(said, ensure_ascii=False)
    elif prompt:
        text = json.dumps(prompt[0] if isinstance(prompt, list) and isinstance(prompt[0], str) else prompt)
    else:
        return ""
    return hashlib.blake2b(text[:characters].encode(errors="replace"), digest_size=8).hexdigest()


def ranked(key: str, replicas: Sequence[str], busy: Mapping[str, int], room: int) -> list[list[str]]:
    """Replicas by preference: ranks, the best first.

    Rendezvous hashing: when a replica comes or goes, only the keys that it wins or held move.

    Args:
        key: of :func:`prefix_key`; the empty one prefers nobody.
        replicas: names.
        busy: requests at each, as far as known.
        room: requests that a replica can work at together; from there on it is full.
    """
    free = [one for one in replicas if busy.get(one, 0) < room]
    full = sorted((one for one in replicas if one not in free), key=lambda one: busy[one])
    if key:
        order = [[one] for one in sorted(free, key=lambda one: _weight(key, one), reverse=True)]
    else:
        order = [free] if free else []
    return order + [[one] for one in full]


def _weight(key: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{key}/{replica}".encode(), digest_size=8).digest()
