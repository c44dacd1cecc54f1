"""Answers on their way to the agent: what the backend did not take is told, whatever comes after."""

from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
from structlog.testing import capture_logs

from app.backends.base import Answer, BackendRejected
from app.domain.ids import PermissionId
from app.engine.answering import Answers
from app.engine.run import Waiting

pytestmark = pytest.mark.anyio


class Refusing:
    """An agent that takes no answer."""

    async def answer(self, request: str, answer: Answer) -> None:
        raise BackendRejected("no such option")


async def test_an_answer_that_is_not_taken_is_logged_before_anything_follows_on_it() -> None:
    """The relay, which is asked first what else came, may raise: the line is there by then."""
    through = anyio.Event()
    waiting = Waiting(
        id=PermissionId("prm_1"), request="1", for_person=True, is_question=False, expires_at=None
    )
    with capture_logs() as logs:
        async with anyio.create_task_group() as tasks:
            hosted = SimpleNamespace(tasks=tasks, wake=through.set)
            answers = Answers(cast(Any, hosted), cast(Any, SimpleNamespace(agent=Refusing())))
            await answers.give(waiting, True, "caller")
            await through.wait()
    assert answers.next_through() is not None
    assert [(one["event"], one["error"]) for one in logs] == [("answer_not_taken", "BackendRejected")]
