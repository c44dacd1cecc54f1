"""Archiving an agent that nobody holds, whichever way leads to its daemon."""

from typing import Protocol

from app.backends.base import BackendRejected, BackendUnavailable
from app.paseo import errors
from app.paseo.errors import PaseoError, Reason


class Archives(Protocol):
    """A way to a daemon by which agents are archived."""

    async def archive(self, agent_id: str, /) -> object:
        """Archive an agent, with its process; whoever is archived already stays so.

        Raises:
            PaseoError: it was not, or nobody knows.
        """


async def put_away(daemon: Archives, agent_id: str) -> None:
    """Archive an agent, with its process; one that is not there is no error.

    Raises:
        BackendRejected: the daemon refused.
        BackendUnavailable: nobody knows whether it did.
    """
    try:
        await daemon.archive(agent_id)
    except errors.Refused as error:
        if error.reason is not Reason.AGENT_NOT_FOUND:
            raise BackendRejected(error.text) from None
    except PaseoError as error:
        raise BackendUnavailable(str(error)) from None
