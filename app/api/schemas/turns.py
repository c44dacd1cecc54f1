"""Bodies of turns: a prompt, alone or with the session that it is for, and what came of it."""

import binascii
from typing import Annotated, Any, Literal, Self

import msgspec
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from app.api.schemas.bodies import MAX_CLOCK_S, Clock, ListView, RequestBody, Timestamp, View
from app.api.schemas.ensure import EnsureFields
from app.api.schemas.text import (
    MAX_PROMPT_BYTES,
    STORABLE,
    JsonObject,
    LongName,
    PromptText,
    SessionIdText,
    Text,
    json_at_most,
    optional_id,
)
from app.domain.events import CancelOutcome, Delivered, ErrorCode, Limit
from app.domain.sessions import EnsureRequest
from app.domain.turns import OnDisconnect, PromptRequest, Strategy, Turn, TurnStatus

MAX_ATTACHMENTS = 20
"""Attachments of one prompt."""
MAX_METADATA_BYTES = 16 * 1024
"""UTF-8 bytes of a turn's metadata as compact JSON."""


def whole(value: Any) -> Any:
    """A number without a fraction as an integer, whatever way it was written."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _image_data(text: str) -> str:
    try:
        binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        raise ValueError("must be base64 (RFC 4648, section 4)") from None
    return text


class ImageAttachment(RequestBody):
    """An image."""

    type: Literal["image"]
    mime_type: Annotated[
        str, StringConstraints(max_length=106, pattern=r"^image/[A-Za-z0-9.+-]{1,100}$"), STORABLE
    ]
    data: Annotated[str, StringConstraints(min_length=4), AfterValidator(_image_data), STORABLE] = Field(
        repr=False, description="Base64.", json_schema_extra={"contentEncoding": "base64"}
    )


class TextAttachment(RequestBody):
    """A named text, such as a log."""

    type: Literal["text"]
    name: LongName | None = None
    text: Text = Field(repr=False)


Attachment = Annotated[ImageAttachment | TextAttachment, Field(discriminator="type")]
"""What goes with a prompt."""


class PromptFields(RequestBody):
    """What every prompt says, prompt-stream's too."""

    # Not called `prompt`: PromptStreamBody has a method of that name.
    text: PromptText = Field(
        alias="prompt", repr=False, description=f"At most {MAX_PROMPT_BYTES} bytes of UTF-8."
    )
    attachments: Annotated[list[Attachment], Field(max_length=MAX_ATTACHMENTS)] | None = None
    multitask_strategy: Strategy | None = Field(None, json_schema_extra={"default": "reject"})
    on_disconnect: OnDisconnect | None = Field(None, json_schema_extra={"default": "continue"})
    queue_timeout_s: Annotated[float, Field(ge=0, le=MAX_CLOCK_S)] | None = Field(
        None, json_schema_extra={"default": 3600}
    )
    deadline_s: Clock | None = Field(None, json_schema_extra={"default": 3600})
    idle_timeout_s: Clock | None = Field(None, json_schema_extra={"default": 600})
    max_attempts: Annotated[int, Field(ge=1, le=10), BeforeValidator(whole)] | None = Field(
        None, json_schema_extra={"default": 3}
    )
    metadata: Annotated[JsonObject, json_at_most(MAX_METADATA_BYTES)] | None = Field(
        None, description="The caller's own; shown with the turn."
    )

    def _prompt(self) -> PromptRequest:
        said = {
            name: getattr(self, name)
            for name in PromptFields.model_fields
            if name not in ("text", "attachments") and getattr(self, name) is not None
        }
        attachments = [part.model_dump(exclude_none=True) for part in self.attachments or ()]
        return PromptRequest(prompt=self.text, attachments=attachments, **said)


class PromptBody(PromptFields):
    """A prompt."""

    def to_domain(self) -> PromptRequest:
        """The request; what is not said has its default."""
        return self._prompt()


class PromptStreamBody(EnsureFields, PromptFields):
    """A session as it is wanted, and a prompt for it."""

    session_id: SessionIdText | None = None

    def ensure(self) -> EnsureRequest:
        """The session's part."""
        return self._ensure(optional_id(self.session_id))

    def prompt(self) -> PromptRequest:
        """The prompt's part."""
        return self._prompt()


class ErrorView(View):
    """Why a turn failed."""

    code: ErrorCode
    message: str
    retriable: bool


class UsageView(View):
    """Tokens and money, each null where the backend does not tell."""

    input_tokens: int | None
    cached_input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None
    context_window_max: int | None
    context_window_used: int | None


class TurnView(View):
    """A turn: one prompt and all that came of it."""

    turn_id: str
    session_id: str
    status: TurnStatus
    attempt: int
    max_attempts: int
    retry_of: str | None
    prompt: str
    metadata: dict[str, Any]
    output_text: str = Field(description="The assistant's text after the last tool call.")
    stop_reason: str | None
    usage: UsageView | None
    error: ErrorView | None
    cause: str | None
    limit: Limit | None
    delivered: Delivered | None
    cancel_outcome: CancelOutcome | None
    first_seq: int
    last_seq: int | None
    created_at: Timestamp
    started_at: Timestamp | None
    ended_at: Timestamp | None
    stream_url: str

    @classmethod
    def from_domain(cls, turn: Turn) -> Self:
        """A turn as its owner sees it."""
        return cls(
            turn_id=turn.id,
            session_id=turn.session_id,
            status=turn.status,
            attempt=turn.attempt,
            max_attempts=turn.request.max_attempts,
            retry_of=turn.request.retry_of,
            prompt=turn.request.prompt,
            metadata=dict(turn.request.metadata),
            output_text=turn.output_text,
            stop_reason=turn.stop_reason,
            usage=UsageView(**msgspec.structs.asdict(turn.usage)) if turn.usage is not None else None,
            error=ErrorView(**msgspec.structs.asdict(turn.error)) if turn.error is not None else None,
            cause=turn.cause,
            limit=turn.limit,
            delivered=turn.delivered,
            cancel_outcome=turn.cancel_outcome,
            first_seq=turn.first_seq,
            last_seq=turn.last_seq,
            created_at=turn.created_at,
            started_at=turn.started_at,
            ended_at=turn.ended_at,
            stream_url=f"/v1/turns/{turn.id}/events/stream",
        )


class TurnList(ListView[TurnView]):
    """Turns of a session, newest first."""
