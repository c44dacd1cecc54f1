"""What became of a turn that ended while nobody looked: judged from snapshots and the rows since its prompt.

Pure. What cannot be known is said to be unknown; an end without an error is `reconciled`, for a refusal or
another client's cancel may look the same.
"""

from dataclasses import dataclass

from app.backends.paseo_turns import Trail
from app.domain.signals import TurnBroke, TurnEnd, TurnEnded, TurnStopped, TurnUnknown
from app.paseo.errors import Reason, classify
from app.paseo.snapshots import Agent


@dataclass(frozen=True, slots=True)
class NotStarted:
    """The prompt is in the timeline, and nothing shows that a provider has taken it yet."""


@dataclass(frozen=True, slots=True)
class GoesOn:
    """The turn runs."""


Verdict = NotStarted | GoesOn | TurnEnd
FAILED = "the agent's turn failed"


def judge(agent: Agent, trail: Trail) -> Verdict:
    """What became of a turn, in the epoch in which it was prompted."""
    flag = agent.attention_timestamp if agent.requires_attention else None
    if trail.followed_at is None:
        return _judge_last(agent, trail, flag)
    if flag is None:
        if trail.error is not None:
            return _broke(trail)
        if trail.has_cancelled_tool:
            return TurnStopped(cause="other_client")
        return TurnUnknown(cause="unobserved")
    if flag >= trail.followed_at:
        return TurnStopped(cause="replaced")
    return _broke(trail) if agent.attention_reason == "error" else _quiet_end(trail)


def _judge_last(agent: Agent, trail: Trail, flag: str | None) -> Verdict:
    if agent.status == "running":
        return GoesOn()
    is_flagged = flag is not None and flag > trail.prompted_at
    if agent.status == "initializing" or not (trail.rows or is_flagged):
        return NotStarted()
    if agent.status == "error":
        return _broke(trail, agent.last_error)
    return _quiet_end(trail)


def _quiet_end(trail: Trail) -> TurnEnd:
    if trail.has_cancelled_tool:
        return TurnStopped(cause="other_client")
    return TurnEnded(stop_reason=None, reconciled=True)


def _broke(trail: Trail, message: str | None = None) -> TurnBroke:
    words = message or trail.error or FAILED
    is_dead = classify(words) is Reason.PROCESS_DEAD
    return TurnBroke(
        code="agent_process_dead" if is_dead else "provider_error", message=words, retriable=is_dead
    )


def judge_stored(stored: Agent, trail: Trail | None, *, delivered: bool) -> TurnEnd:
    """What became of a turn whose daemon is gone, from the snapshot as it lay before anything was loaded."""
    if trail is not None and trail.followed_at is not None:
        verdict = judge(stored, trail)
        if not isinstance(verdict, NotStarted | GoesOn):
            return verdict
    # A flag of an earlier turn says nothing of a prompt that may never have arrived.
    flag = stored.attention_timestamp if stored.requires_attention and delivered else None
    if flag is not None and flag > (stored.last_user_message_at or ""):
        if stored.status == "error":
            return TurnBroke(code="provider_error", message=f"{FAILED}, and the daemon lost its words")
        if stored.status == "idle" and stored.attention_reason == "finished":
            return TurnEnded(stop_reason=None, reconciled=True)
    if delivered:
        return TurnUnknown(cause="daemon_restarted: the agent may still be working", delivered="yes")
    cause = "daemon_restarted: nobody can tell whether the prompt arrived"
    return TurnUnknown(cause=cause, delivered="unknown")
