"""Reading what an agent said out of its log, which shows neither turns nor, for certain, who speaks."""

import hashlib

import anyio
import structlog

from app.domain.signals import Cursor
from app.paseo import activity
from app.paseo.cli import Log, PaseoCli
from app.paseo.errors import PaseoError

log = structlog.get_logger(__name__)


async def read(cli: PaseoCli, agent: str) -> tuple[Log, Log]:
    """The agent's talk, and with it all that it did, if that can be read as well.

    Raises:
        PaseoError: not even the talk can be read.
    """
    told: list[Log] = []
    errors: list[PaseoError] = []

    async def read_talk() -> None:
        try:
            told.append(await cli.talk(agent))
        except PaseoError as error:
            errors.append(error)

    async with anyio.create_task_group() as reading:  # each takes its seconds
        reading.start_soon(read_talk)
        try:
            shown = await cli.logs(agent)
        except PaseoError as error:
            log.info("paseo_cli_log_unread", error=type(error).__name__)
            shown = Log("", is_whole=False)
    if errors:
        raise errors[0]
    return told[0], shown


def after_prompt(prompt: str, talk: Log, seen: Cursor | None, *, is_sure: bool) -> str | None:
    """What stands after a prompt of ours; null if that does not stand there.

    Of a talk that is too long only the last prompt and its answer are there: ours, if it is sure to have
    started, or if they are not those that were there before.
    """
    text = talk.text
    if not talk.is_whole:
        is_old = seen is not None and position(text) == seen
        return activity.answer_to(prompt, text) if is_sure or not is_old else None
    if seen is None:
        return activity.answer_to(prompt, text)
    if position(text[: seen.seq]) == seen:
        return activity.answer_to(prompt, text[seen.seq :])
    return activity.answer_to(prompt, text, last=True)  # it was written anew


async def is_followed(
    cli: PaseoCli, agent: str, prompt: str, said: str | None, talk: Log, *, is_sure: bool
) -> bool:
    """Whether somebody else's prompt came after ours: one looks like what an agent may say."""
    if said is None and (talk.is_whole or not is_sure):
        return False
    if said is not None and not activity.may_be_followed(said):
        return False
    if said is not None and activity.answer_to(prompt, said) is not None:
        return True  # the same prompt once more, for all that can be told
    try:
        last = await cli.last_prompt(agent)
    except PaseoError as error:
        log.info("paseo_cli_log_unread", error=type(error).__name__)
        return True
    return not activity.is_last(prompt, last.text)


def position(text: str) -> Cursor:
    """A position in a log: how long it was, and a name for what stood there."""
    return Cursor(epoch=hashlib.sha256(text.encode(errors="replace")).hexdigest()[:32], seq=len(text))
