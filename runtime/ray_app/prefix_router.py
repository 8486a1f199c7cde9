"""The request router of Ray Serve; the one module here that needs Ray when it is imported."""

from typing import Any

from ray.serve.request_router import RequestRouter

from lineahead.runtime.ray_app.prefixes import ranked


class PrefixRouter(RequestRouter):  # type: ignore[misc]
    """Chooses as :func:`ranked` says, by the keyword argument ``prefix`` of the call."""

    def initialize_state(self, room: int) -> None:
        """Called by Serve with the configured arguments.

        Args:
            room: requests that a replica works at together.
        """
        self._room = room

    async def choose_replicas(
        self, candidate_replicas: list[Any], pending_request: Any = None
    ) -> list[list[Any]]:
        """Called by Serve for every request."""
        named = {str(one.replica_id.unique_id): one for one in candidate_replicas}
        known = self.replica_queue_len_cache
        busy = {name: known.get(one.replica_id) or 0 for name, one in named.items()}
        key = pending_request.kwargs.get("prefix", "") if pending_request is not None else ""
        return [[named[name] for name in rank] for rank in ranked(key, list(named), busy, self._room)]
