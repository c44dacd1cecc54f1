"""The tables. Rows never leave this room; constraints carry the invariants that code only words."""

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Computed,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    Text,
    UniqueConstraint,
    false,
    func,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY, INT8MULTIRANGE, JSON, JSONB, UUID
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.domain.events import TERMINAL_TYPES
from app.domain.tasks import TaskStatus
from app.domain.turns import TurnStatus

_TERMINAL = ", ".join(f"'{name}'" for name in sorted(TERMINAL_TYPES))
_TURN_STATUSES = ", ".join(f"'{status}'" for status in TurnStatus)
_TASK_STATUSES = ", ".join(f"'{status}'" for status in TaskStatus)


class Base(DeclarativeBase):
    """Names constraints by convention, so that a migration can name what it changes."""

    metadata = MetaData(
        naming_convention={
            "ix": "%(table_name)s_%(column_0_N_name)s_idx",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "ck": "%(table_name)s_%(constraint_name)s_chk",
            "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
            "pk": "%(table_name)s_pkey",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text(),
        int: BigInteger(),
        datetime: DateTime(timezone=True),
        bytes: LargeBinary(),
    }


class SessionRow(Base):
    """One agent of one owner. `id` is the only foreign key of everything else."""

    __tablename__ = "agent_sessions"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    owner: Mapped[str]
    session_id: Mapped[str]
    chat_id: Mapped[str]
    agent: Mapped[str]
    backend: Mapped[str]
    provider: Mapped[str]
    agent_session_id: Mapped[str | None]
    """The backend's id of its agent; null is an unfinished creation, which nobody sees."""
    creation_key: Mapped[str]
    creating: Mapped[bool] = mapped_column(server_default=false())
    """Whether the backend was once asked to make the agent: then it is looked for before it is made."""
    server_port: Mapped[int | None]
    requested_cwd: Mapped[str | None]
    cwd: Mapped[str]
    project_id: Mapped[str | None]
    worktree_id: Mapped[str | None]
    model: Mapped[str | None]
    mode: Mapped[str | None]
    thinking: Mapped[str | None]
    title: Mapped[str | None]
    system_prompt: Mapped[str | None]
    mcp_servers: Mapped[dict[str, Any]] = mapped_column(JSON, server_default=text("'{}'"))
    worktree: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """The worktree that the agent is to be made in: `branch` and `base`."""
    provider_session_id: Mapped[str | None]
    """The provider's session that was adopted instead of making an agent."""
    former_provider_session_id: Mapped[str | None]
    """The one that was, before its agent was lost and replaced by one that is on none."""
    labels: Mapped[dict[str, str]] = mapped_column(JSONB, server_default=text("'{}'"))
    status: Mapped[str] = mapped_column(server_default=text("'active'"))
    close_mode: Mapped[str | None]
    archived: Mapped[bool | None]
    """Null while there is nothing to archive; false until the backend has archived the agent."""
    agent_lost: Mapped[bool] = mapped_column(server_default=false())
    foreign_busy: Mapped[bool] = mapped_column(server_default=false())
    """Whether somebody else keeps the agent busy."""
    policy_mode: Mapped[str] = mapped_column(server_default=text("'ask'"))
    policy_timeout_s: Mapped[float] = mapped_column(server_default=text("900"))
    policy_on_timeout: Mapped[str] = mapped_column(server_default=text("'deny'"))
    oldest_seq: Mapped[int] = mapped_column(server_default=text("1"))
    last_seq: Mapped[int] = mapped_column(server_default=text("0"))
    last_batch: Mapped[Any | None] = mapped_column(UUID)
    """The last batch that the host appended: a batch whose commit was answered by silence is not repeated."""
    epoch: Mapped[str | None]
    seq: Mapped[int | None]
    host: Mapped[str | None]
    host_generation: Mapped[int] = mapped_column(server_default=text("0"))
    host_until: Mapped[datetime | None]
    wanted: Mapped[bool] = mapped_column(server_default=false())
    """Whether an intent was written since a host last looked."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_active_at: Mapped[datetime] = mapped_column(server_default=func.now())
    closed_at: Mapped[datetime | None]

    __table_args__ = (
        UniqueConstraint("owner", "session_id"),
        UniqueConstraint("owner", "chat_id", "agent"),
        CheckConstraint("backend ~ '^[a-z0-9][a-z0-9_-]{0,63}$'", name="backend"),
        CheckConstraint("status IN ('active', 'closing', 'closed')", name="status"),
        CheckConstraint("policy_mode IN ('ask', 'allow', 'deny')", name="policy_mode"),
        CheckConstraint("policy_on_timeout IN ('deny', 'allow')", name="policy_on_timeout"),
        CheckConstraint("oldest_seq >= 1 AND last_seq >= oldest_seq - 1", name="log"),
        CheckConstraint("(host IS NULL) = (host_until IS NULL)", name="host"),
        Index(None, "owner", "created_at", "id"),
        Index("agent_sessions_hosted_idx", "host_until", postgresql_where=text("host IS NOT NULL")),
        Index("agent_sessions_wanted_idx", "id", postgresql_where=text("wanted")),
        Index("agent_sessions_unarchived_idx", "id", postgresql_where=text("archived = false")),
    )


class TombstoneRow(Base):
    """Where the numbers of an erased or re-bound session id stopped; that id counts on from there."""

    __tablename__ = "session_tombstones"

    owner: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(primary_key=True)
    last_seq: Mapped[int]


class TurnRow(Base):
    """One prompt. At most one of a session's turns has started and not ended."""

    __tablename__ = "turns"

    id: Mapped[str] = mapped_column(primary_key=True)
    session: Mapped[int] = mapped_column(ForeignKey("agent_sessions.id", ondelete="CASCADE"))
    status: Mapped[str]
    rank: Mapped[int]
    """Order in the queue, smallest first."""
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    generation: Mapped[int | None]
    """The host generation that committed the last `turn.started`: only it may send that attempt."""
    retry_of: Mapped[str | None]
    prompt: Mapped[str]
    attachments: Mapped[list[Any]] = mapped_column(JSON, server_default=text("'[]'"))
    turn_metadata: Mapped[dict[str, Any]] = mapped_column("metadata", JSON, server_default=text("'{}'"))
    on_disconnect: Mapped[str]
    multitask_strategy: Mapped[str]
    queue_timeout_s: Mapped[float]
    deadline_s: Mapped[float]
    idle_timeout_s: Mapped[float]
    max_attempts: Mapped[int]
    output_text: Mapped[str] = mapped_column(server_default=text("''"))
    stop_reason: Mapped[str | None]
    usage: Mapped[Any | None] = mapped_column(JSON)
    error: Mapped[Any | None] = mapped_column(JSON)
    cause: Mapped[str | None]
    time_limit: Mapped[str | None]
    delivered: Mapped[str | None]
    cancel_outcome: Mapped[str | None]
    cancel_cause: Mapped[str | None]
    cancel_requested_at: Mapped[datetime | None]
    first_seq: Mapped[int]
    last_seq: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    last_backend_event_at: Mapped[datetime | None]
    task: Mapped[str | None]
    """The task that it is a step's turn of. No foreign key: both go with their session, and only so."""

    __table_args__ = (
        CheckConstraint(f"status IN ({_TURN_STATUSES})", name="status"),
        CheckConstraint(
            "(ended_at IS NOT NULL) = "
            "(status IN ('completed', 'failed', 'cancelled', 'timed_out', 'indeterminate'))",
            name="ended",
        ),
        Index(None, "session", "created_at", "id"),
        Index("turns_open_idx", "session", "rank", postgresql_where=text("ended_at IS NULL")),
        Index(
            "turns_one_open_a_task",
            "task",
            unique=True,
            postgresql_where=text("task IS NOT NULL AND ended_at IS NULL"),
        ),
        Index(
            "turns_one_running",
            "session",
            unique=True,
            postgresql_where=text("started_at IS NOT NULL AND ended_at IS NULL"),
        ),
    )


class TaskRow(Base):
    """Steps on one session, one turn after the other."""

    __tablename__ = "tasks"

    id: Mapped[str] = mapped_column(primary_key=True)
    session: Mapped[int] = mapped_column(ForeignKey("agent_sessions.id", ondelete="CASCADE"))
    status: Mapped[str] = mapped_column(server_default=text("'pending'"))
    current: Mapped[int] = mapped_column(server_default=text("0"))
    """The step that runs, or at which it ended; counts from 0."""
    cancel_requested: Mapped[bool] = mapped_column(server_default=false())
    version: Mapped[int] = mapped_column(server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(f"status IN ({_TASK_STATUSES})", name="status"),
        CheckConstraint(
            "(ended_at IS NOT NULL) = (status IN ('completed', 'failed', 'cancelled', 'timed_out'))",
            name="ended",
        ),
        Index(None, "session", "created_at", "id"),
        Index(None, "created_at", "id"),
        Index("tasks_open_idx", "session", postgresql_where=text("ended_at IS NULL")),
    )


class TaskStepRow(Base):
    """One step of a task, and what became of it."""

    __tablename__ = "task_steps"

    task: Mapped[str] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    prompt: Mapped[str]
    deadline_s: Mapped[float]
    max_attempts: Mapped[int]
    on_failure: Mapped[str]
    status: Mapped[str] = mapped_column(server_default=text("'pending'"))
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    """Turns since the task was made, or last retried."""
    turn_ids: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    error: Mapped[Any | None] = mapped_column(JSON)

    __table_args__ = (
        CheckConstraint(f"status IN ({_TASK_STATUSES})", name="status"),
        CheckConstraint("on_failure IN ('stop', 'continue')", name="on_failure"),
    )


class EventRow(Base):
    """One durable event; `body` is the text of its `data:` line after `{"seq":N,`."""

    __tablename__ = "events"

    session: Mapped[int] = mapped_column(
        ForeignKey("agent_sessions.id", ondelete="CASCADE"), primary_key=True
    )
    seq: Mapped[int] = mapped_column(primary_key=True)
    turn_id: Mapped[str | None]
    type: Mapped[str]
    body: Mapped[str]

    __table_args__ = (
        Index(
            "events_one_terminal_a_turn",
            "turn_id",
            unique=True,
            postgresql_where=text(f"type IN ({_TERMINAL})"),
        ),
    )


class PermissionRow(Base):
    """One request for approval; the id is unguessable and used once."""

    __tablename__ = "permissions"

    id: Mapped[str] = mapped_column(primary_key=True)
    session: Mapped[int] = mapped_column(ForeignKey("agent_sessions.id", ondelete="CASCADE"))
    turn_id: Mapped[str | None]
    request: Mapped[str]
    """The backend's own id, unique only per agent and while it is pending."""
    tool_call_id: Mapped[str | None]
    kind: Mapped[str]
    title: Mapped[str]
    description: Mapped[str | None]
    detail: Mapped[Any | None] = mapped_column(JSON)
    input: Mapped[Any | None] = mapped_column(JSON)
    options: Mapped[list[Any]] = mapped_column(JSON)
    questions: Mapped[list[Any]] = mapped_column(JSON)
    shown_sha256: Mapped[bytes]
    """Hash of what was shown to the person who approves."""
    status: Mapped[str] = mapped_column(server_default=text("'pending'"))
    response: Mapped[Any | None] = mapped_column(JSON)
    outcome: Mapped[str | None]
    option_id: Mapped[str | None]
    refusal: Mapped[str | None]
    """Why the backend did not honour the last answer; it is pending again."""
    resolved_by: Mapped[str | None]
    actor: Mapped[str | None]
    requested_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    resolved_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(
            "status IN ('pending', 'answering', 'allowed', 'denied', 'unknown', 'expired', 'cancelled')",
            name="status",
        ),
        Index(None, "session", "requested_at", "id"),
        Index(
            "permissions_waiting_idx", "session", postgresql_where=text("status IN ('pending', 'answering')")
        ),
    )


class TerminalRow(Base):
    """A terminal that was made through us; its row outlives its session's until nothing of it runs."""

    __tablename__ = "terminals"

    id: Mapped[str] = mapped_column(primary_key=True)
    session: Mapped[int | None] = mapped_column(ForeignKey("agent_sessions.id", ondelete="SET NULL"))
    kind: Mapped[str]
    place: Mapped[str]
    """Where it can be reached: a backend's name, or what names a data directory on a running kernel."""
    handle: Mapped[str | None]
    """What it is called there; null while it is being made."""
    name: Mapped[str | None]
    command: Mapped[str | None]
    args: Mapped[list[Any]] = mapped_column(JSON, server_default=text("'[]'"))
    cwd: Mapped[str]
    rows: Mapped[int]
    cols: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    closed_at: Mapped[datetime | None]
    gone: Mapped[bool] = mapped_column(server_default=false())
    """Whether it is known that nothing of it runs."""

    __table_args__ = (
        CheckConstraint("kind IN ('paseo', 'tmux')", name="kind"),
        CheckConstraint("NOT gone OR closed_at IS NOT NULL", name="gone"),
        Index(None, "session", "created_at", "id"),
        Index("terminals_unsettled_idx", "place", postgresql_where=text("NOT gone")),
    )


class IntentRow(Base):
    """What some replica wants the session's host to do, and what came of it.

    No foreign key: the answer outlives a session whose creation failed.
    """

    __tablename__ = "intents"

    id: Mapped[Any] = mapped_column(UUID, primary_key=True)
    session: Mapped[int]
    kind: Mapped[str]
    body: Mapped[Any] = mapped_column(JSON)
    result: Mapped[Any | None] = mapped_column(JSON)
    error: Mapped[Any | None] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    done_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("kind IN ('open', 'configure', 'close')", name="kind"),
        Index("intents_open_idx", "session", "created_at", postgresql_where=text("done_at IS NULL")),
        Index("intents_done_idx", "done_at", postgresql_where=text("done_at IS NOT NULL")),
    )


class FileTouchRow(Base):
    """A file that a session has written: its last touch, and the lines of all of them."""

    __tablename__ = "file_touches"

    session: Mapped[int] = mapped_column(
        ForeignKey("agent_sessions.id", ondelete="CASCADE"), primary_key=True
    )
    path: Mapped[str] = mapped_column(primary_key=True)
    """Relative to the worktree's root."""
    owner: Mapped[str]
    project_id: Mapped[str]
    root: Mapped[str]
    remote: Mapped[str | None]
    """The backend on whose disk the root is; null for this machine's."""
    place: Mapped[int | None] = mapped_column(
        Computed(
            "hashtextextended(coalesce(remote, ''::text) || '|'::text || rtrim(root, '/'::text)"
            " || '/'::text || path, 0::bigint)",
            persisted=True,
        )
    )
    """The file itself, from whatever root it is seen."""
    kind: Mapped[str]
    turn_id: Mapped[str | None]
    lines: Mapped[Any | None] = mapped_column(INT8MULTIRANGE)
    """As the file was before the first touch; null where nobody tells."""
    lines_now: Mapped[Any | None] = mapped_column(INT8MULTIRANGE)
    """The same lines as the last touch has left the file; null where that cannot be told."""
    hunks: Mapped[Any | None] = mapped_column(JSON)
    """From the one to the other, a list of (first line before, lines before, lines now); null like it."""
    first_at: Mapped[datetime] = mapped_column(server_default=func.now())
    touched_at: Mapped[datetime] = mapped_column(server_default=func.now())
    pending: Mapped[bool] = mapped_column(server_default=true())
    """Whether nobody has looked yet who else writes the file."""

    __table_args__ = (
        CheckConstraint("kind IN ('edit', 'write', 'delete', 'move', 'shell')", name="kind"),
        Index("file_touches_file_idx", "owner", "project_id", "path", "touched_at"),
        Index("file_touches_place_idx", "owner", "project_id", "place", "touched_at"),
        Index(None, "touched_at"),
        Index("file_touches_pending_idx", "session", "touched_at", postgresql_where=text("pending")),
    )


class CollisionRow(Base):
    """Two sessions that write the same file, as both logs were told; `session_a` is the smaller id."""

    __tablename__ = "collisions"

    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    project_id: Mapped[str]
    path: Mapped[str]
    session_a: Mapped[int] = mapped_column(ForeignKey("agent_sessions.id", ondelete="CASCADE"))
    session_b: Mapped[int] = mapped_column(ForeignKey("agent_sessions.id", ondelete="CASCADE"))
    severity: Mapped[str]
    overlap: Mapped[str]
    merge_conflict: Mapped[bool | None]
    touches: Mapped[list[Any]] = mapped_column(JSON)
    """Each session's last touch at that time, the first first; `side` says whose it is: a or b."""
    opened_at: Mapped[datetime] = mapped_column(server_default=func.now())
    resolved_at: Mapped[datetime | None]
    resolution: Mapped[str | None]

    __table_args__ = (
        CheckConstraint("session_a < session_b", name="pair"),
        CheckConstraint("severity IN ('overwrite', 'merge')", name="severity"),
        CheckConstraint("overlap IN ('same_lines', 'same_file')", name="overlap"),
        CheckConstraint(
            "(resolved_at IS NULL) = (resolution IS NULL) "
            "AND resolution IN ('session_closed', 'session_idle')",
            name="resolution",
        ),
        Index(None, "owner", "opened_at", "id"),
        Index(None, "owner", "project_id", "opened_at", "id"),
        Index(
            "collisions_open_idx",
            "owner",
            "opened_at",
            "id",
            postgresql_where=text("resolved_at IS NULL"),
        ),
        Index(
            "collisions_one_open",
            "session_a",
            "session_b",
            "path",
            unique=True,
            postgresql_where=text("resolved_at IS NULL"),
        ),
        Index(None, "session_a"),
        Index(None, "session_b"),
    )


class ApiKeyRow(Base):
    """An API key; only a hash of its secret is kept."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    name: Mapped[str]
    secret_sha256: Mapped[bytes]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    revoked_at: Mapped[datetime | None]

    __table_args__ = (Index(None, "owner", "created_at", "id"),)


class TicketRow(Base):
    """A ticket that opens one stream for an EventSource; only a hash of it is kept."""

    __tablename__ = "stream_tickets"

    ticket_sha256: Mapped[bytes] = mapped_column(primary_key=True)
    key_id: Mapped[str | None]
    owner: Mapped[str]
    target: Mapped[str]
    opening: Mapped[Any | None] = mapped_column(UUID)
    """The stream that it opened last; an older one is superseded."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    opened_at: Mapped[datetime | None]
    last_ended_at: Mapped[datetime | None]

    __table_args__ = (Index(None, "created_at"),)


class IdempotencyRow(Base):
    """Which turn an Idempotency-Key admitted; kept for 24 hours."""

    __tablename__ = "idempotency_keys"

    owner: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_sha256: Mapped[bytes]
    turn_id: Mapped[str]
    """No foreign key: an erased turn is not run again either."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index(None, "created_at"),)


class BackendHealthRow(Base):
    """What one replica last saw of a backend."""

    __tablename__ = "backend_health"

    backend: Mapped[str] = mapped_column(primary_key=True)
    replica: Mapped[str] = mapped_column(primary_key=True)
    up: Mapped[bool]
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())


class BackendDrainRow(Base):
    """A backend that takes no new turns."""

    __tablename__ = "backend_drains"

    backend: Mapped[str] = mapped_column(primary_key=True)
    since: Mapped[datetime] = mapped_column(server_default=func.now())
