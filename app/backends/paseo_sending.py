"""A prompt on its way to the daemon, and what its answer means."""

import anyio
import msgspec

from app.backends.base import Prompt, SendFailed
from app.backends.paseo_following import Follower
from app.backends.paseo_telling import Sent
from app.backends.paseo_translate import failure_words
from app.domain.signals import TurnBroke
from app.paseo import errors
from app.paseo.client import PaseoClient
from app.paseo.connection import MAX_OUTGOING
from app.paseo.errors import Reason


def refuse_unsendable(prompt: Prompt) -> None:
    """Refuse what no repetition would get to the daemon.

    Raises:
        SendFailed: it is too big, or no text (a lone surrogate).
    """
    try:
        size = len(msgspec.json.encode([prompt.text, [part.data for part in prompt.attachments]]))
    except ValueError:
        raise SendFailed("the prompt is not valid text", delivered="no", retriable=False) from None
    if size > MAX_OUTGOING - 64 * 1024:
        words = f"the prompt has {size} bytes, and the daemon takes no more than 100 MiB"
        raise SendFailed(words, delivered="no", retriable=False)


class Delivery:
    """One prompt's way; `written` is set when it left, or when `failure` says that it did not."""

    def __init__(self, client: PaseoClient, follower: Follower, sent: Sent) -> None:
        self.written = anyio.Event()
        self.failure: SendFailed | None = None
        self._client = client
        self._follower = follower
        self._sent = sent

    async def run(self, agent_id: str, prompt: Prompt) -> None:
        """Send it and take in the answer; what the answer leaves open, the timeline will tell."""
        images = [
            {"data": part.data, "mimeType": part.mime_type or "image/png"}
            for part in prompt.attachments
            if part.kind == "image"
        ]
        texts = [
            {"type": "text", "mimeType": "text/plain", "title": part.name or "attachment", "text": part.data}
            for part in prompt.attachments
            if part.kind == "text"
        ]
        try:
            await self._client.send_message(
                agent_id,
                prompt.text,
                message_id=prompt.attempt,
                images=images or None,
                attachments=texts or None,
                before_write=lambda: self._leave(prompt),
            )
        except errors.NotSent as error:
            self.failure = SendFailed(str(error), delivered="no", retriable=True)
        except errors.Refused as error:
            await self._refused(error)
        except (errors.Timeout, errors.Undecodable):
            self._follower.settler.look_soon()
        except errors.LinkLost:
            pass  # catching up will find out
        else:
            self._sent.accepted = True
        finally:
            if not self.written.is_set() and self.failure is None:
                self.failure = SendFailed("the agent was let go", delivered="no", retriable=True)
            self.written.set()

    def _leave(self, prompt: Prompt) -> None:
        """The prompt leaves now: nothing is waited for between this and the socket."""
        if not prompt.may_leave():
            raise errors.NotSent("the session's lease ran out before the prompt was sent")
        self.written.set()

    async def _refused(self, error: errors.Refused) -> None:
        """The daemon said no; some of its texts are no refusal, and the turn may run all the same."""
        async with self._follower.turnstile:
            try:
                self._follower.take()  # a turn that could not start was told to have failed before
            except (errors.Lagged, anyio.EndOfStream):
                return
            teller, sent = self._follower.teller, self._sent
            if teller.sent is not sent or (error.reason is Reason.TURN_ACTIVE and sent.started.is_set()):
                return
            is_lost = error.reason in (Reason.AGENT_NOT_FOUND, Reason.CANNOT_RESUME)
            broke = TurnBroke(
                code="backend_session_lost" if is_lost else "backend_rejected",
                message=failure_words(error.text),
                delivered="no" if is_lost else "unknown",
            )
            if error.reason is Reason.START_UNCERTAIN:
                self._follower.settler.look_soon()
            elif error.reason is Reason.PROCESS_DEAD and sent.trail is not None:
                sent.refusal = broke
                self._follower.settler.look_soon()
            else:
                teller.conclude(broke)
