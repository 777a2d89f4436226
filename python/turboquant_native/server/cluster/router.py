"""Ray's choice of a replica for a request: one that has seen its beginning, otherwise the less busy of two."""

import random
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, ReplicaResult, RequestRouter, RunningReplica

from .prefixes import Prefix, Seen


class PrefixRouter(RequestRouter):
    """Replicas in the order of preference; a full one refuses, and the next is asked."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Called by Ray once."""
        self._seen = Seen()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """[the replica that knows the beginning], [two of the others, of which Ray takes the less busy], [the rest]."""
        replicas = {replica.replica_id: replica for replica in candidate_replicas}
        known = self._seen.best(_prefix(pending_request), list(replicas))
        first = [replicas.pop(known)] if known is not None else []
        others = random.sample(list(replicas.values()), len(replicas))
        return [rank for rank in (first, others[:2], others[2:]) if rank]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        """Notes who has it."""
        self._seen.note(_prefix(pending_request), replica_id)


def _prefix(request: PendingRequest | None) -> Prefix:
    call = request.args[0] if request is not None and request.args else None
    prefix: Prefix = getattr(call, "prefix", ())
    return prefix
