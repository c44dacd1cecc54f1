"""Events and whatever changes with them, written in one commit."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from app.domain.collisions import Touched
from app.domain.events import (
    Event,
    PermissionExpired,
    PermissionResolved,
    Terminal,
)
from app.domain.ids import TurnId
from app.domain.signals import Config, Cursor
from app.domain.touches import touches_of
from app.domain.turns import ENDS, Turn
from app.engine import stepping
from app.engine.hosted import Hosted
from app.engine.run import Asked, Run, Told
from app.engine.stepping import Sequel
from app.engine.touching import find_touched
from app.store import eventlog, permissions, sessions, touches, turns
from app.store.eventlog import Connection, Outdated
from app.store.turns import Progress


@dataclass
class Batch:
    """What one commit writes."""

    events: list[tuple[TurnId | None, Event]] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    cursor: Cursor | None = None
    config: Config | None = None
    foreign_busy: bool | None = None

    def add(self, turn: TurnId | None, told: Told) -> None:
        """Add what was told of a turn, or of what happened outside any."""
        self.events += [(turn, event) for event in told.events]
        self.asked += told.asked

    def has_touches(self, hosted: Hosted) -> bool:
        """Whether it tells of files that the agent wrote, and that somebody of its project may write, too."""
        in_project = hosted.session.project_id is not None
        return in_project and any(touches_of(event) for _, event in self.events)

    async def write(self, hosted: Hosted, run: Run | None) -> bool:
        """Commit it; waits for as long as the database is down.

        Returns:
            Whether files are kept of which somebody should find out who else writes them.
        Raises:
            LeaseLost: another process hosts the session; nothing was written.
        """
        if not self.events and self.cursor is None and self.foreign_busy is None:
            return False
        touched = await find_touched(hosted.session, hosted.backend.place, self.events)
        written = False
        while not written:
            try:
                await self._write(hosted, run, touched)
                written = True
            except Outdated:  # the turn's task has changed since the sequel was made: once more
                pass
        if run is not None:
            run.written = run.status
        return bool(touched)

    async def _write(self, hosted: Hosted, run: Run | None, touched: Sequence[Touched]) -> None:
        session_id, key = hosted.session.session_id, hosted.lease.session
        drafts = [eventlog.draft(session_id, turn, event) for turn, event in self.events]
        progress, sequel = self._progress(run), None
        if run is not None and progress is not None and progress.end is not None:
            sequel = await _sequel(hosted, run.turn, progress.end)
            if sequel is not None:
                drafts.append(sequel.draft)
                progress = replace(progress, after=1)
        resolved = [e for _, e in self.events if isinstance(e, PermissionResolved | PermissionExpired)]

        async def alongside(connection: Connection) -> None:
            if run is not None and progress is not None:
                await turns.write_progress(connection, run.turn.id, progress)
            if sequel is not None:
                await sequel.write(connection)
            for asked in self.asked:
                await permissions.write_requested(
                    connection,
                    key,
                    run.turn.id if run is not None else None,
                    asked.waiting.request,
                    asked.event,
                    asked.expires_at,
                    answering=asked.answer_now is not None,
                )
            if touched:
                await touches.write(connection, key, touched)
            for event in resolved:
                await permissions.write_resolved(connection, event)
            if self.cursor is not None:
                await sessions.write_cursor(connection, key, self.cursor)
            if self.config is not None:
                await sessions.write_config(connection, key, self.config)
            if self.foreign_busy is not None:
                await sessions.write_foreign_busy(connection, key, self.foreign_busy)

        changes = (
            progress
            or self.asked
            or touched
            or resolved
            or self.cursor
            or self.config
            or self.foreign_busy is not None
        )
        await hosted.events.append(key, hosted.lease.generation, drafts, alongside if changes else None)

    def _progress(self, run: Run | None) -> Progress | None:
        """What the batch changes about the turn's row; null if nothing."""
        if run is None or run.status == run.written:
            return None
        if run.status not in ENDS:
            return Progress(
                status=run.status, output_text="", usage=None, event_at=run.last_event_at, end=None
            )
        end = self.events[-1][1]
        assert isinstance(end, Terminal)
        return Progress(
            status=run.status,
            output_text=run.transcript.output_text,
            usage=run.usage,
            event_at=run.last_event_at,
            end=end,
        )


async def _sequel(hosted: Hosted, turn: Turn, end: Terminal) -> Sequel | None:
    """What the turn's task makes of its end; waits for as long as the database is down."""
    if turn.task_id is None:
        return None

    async def read() -> Sequel | None:
        async with hosted.database.begin() as db:
            return await stepping.sequel(db, turn, end, hosted.session.session_id)

    return await hosted.database.retrying(read)
