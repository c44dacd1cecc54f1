"""Which frames belong to which turn: nothing on the daemon's wire names one, order is all there is. Pure."""

from collections import deque
from dataclasses import dataclass

from app.backends.paseo_translate import is_cancelled_tool, system_error
from app.paseo.items import Item


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose turn it is: an attempt of ours, or, if that is null, somebody else's."""

    attempt: str | None


FOREIGN = Owner(None)


class Turns:
    """The prompts that were written into the timeline and the turn that runs, of one agent."""

    def __init__(self) -> None:
        self._pending: deque[Owner] = deque()
        self._counted = False
        self._expected: str | None = None
        self.open: Owner | None = None
        """Whose turn runs; null if none does."""

    def expect(self, attempt: str, *, idle: bool = False) -> None:
        """A prompt is about to be sent, or was by an earlier process, and its row is still to come.

        An agent at rest has forgotten what was echoed and never started.
        """
        self._expected, self._counted = attempt, False
        if idle and self.open is None:
            self._pending.clear()

    def resume(self, attempt: str) -> None:
        """A turn of ours was found running."""
        self._expected, self._counted = attempt, True
        if self.open != Owner(attempt):
            self._pending.clear()
        self.open = Owner(attempt)

    def prompted(self, message_id: str | None) -> Owner:
        """A user's row came; whose it is. Our own id counts once: others may use the same."""
        ours = message_id is not None and message_id == self._expected and not self._counted
        owner = Owner(message_id) if ours else FOREIGN
        self._counted = self._counted or ours
        self._pending.append(owner)
        return owner

    def started(self) -> None:
        """The daemon says that a turn started."""
        if self.open is None:
            self.open = self._pending.popleft() if self._pending else FOREIGN

    def running(self) -> None:
        """The agent's snapshot says `running`; some providers never say more."""
        if self._pending:
            self.started()

    def row(self) -> Owner | None:
        """A row that is no user's came; whose turn it belongs to, null for none."""
        self.running()
        return self.open

    def ended(self) -> Owner | None:
        """A terminal event came; whose turn it ends, null if there was none to end."""
        owner, self.open = self.open, None
        if owner is None and self._pending:
            owner = self._pending.popleft()  # it never started
        return owner

    def ended_unseen(self) -> None:
        """The turn of ours is over, or never started, and its terminal event was told to nobody."""
        if self.open != FOREIGN:
            self.open = None
        self._pending = deque(owner for owner in self._pending if owner == FOREIGN)

    def rest(self) -> None:
        """The agent's snapshot says that it is at rest: nobody else's turn runs."""
        if self.open == FOREIGN:
            self.open = None

    def found(self, *, running: bool) -> None:
        """The agent was looked at while no turn of ours is open."""
        self._pending.clear()
        self.open = FOREIGN if running else None

    @property
    def is_foreign_next(self) -> bool:
        """Whether somebody else's prompt waits to start."""
        return FOREIGN in self._pending


@dataclass(slots=True)
class Trail:
    """What the timeline shows of a turn of ours, from its prompt to the next user's row."""

    prompted_at: str
    rows: int = 0
    has_cancelled_tool: bool = False
    error: str | None = None
    """The daemon's word on a failure, if that is the last row."""
    followed_at: str | None = None
    followed_by: int | None = None
    """When, and under which number, the next user's row stands."""

    def add(self, item: Item) -> None:
        """A row that is no user's; what follows the next user's row is not ours."""
        if self.followed_at is None:
            self.rows += 1
            self.has_cancelled_tool |= is_cancelled_tool(item)
            self.error = system_error(item)

    def follow(self, at: str, seq: int) -> None:
        """Another user's row."""
        if self.followed_at is None:
            self.followed_at, self.followed_by = at, seq
