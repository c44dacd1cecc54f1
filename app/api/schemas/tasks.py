"""Bodies of tasks: steps, and what became of them."""

from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field

from app.api.schemas.bodies import Clock, ListView, RequestBody, Timestamp, View
from app.api.schemas.text import MAX_PROMPT_BYTES, Name, PromptText, SessionIdText
from app.api.schemas.turns import whole
from app.domain.ids import SessionId
from app.domain.tasks import OnFailure, StepErrorCode, StepRequest, Task, TaskStatus, TaskStep

MAX_STEPS = 100
"""Steps of one task."""


class StepBody(RequestBody):
    """A step: one prompt, and what may be done if it fails."""

    name: Name | None = Field(
        None, description="Unlike that of any other step; `step-<number>` if none is given."
    )
    prompt: PromptText = Field(repr=False, description=f"At most {MAX_PROMPT_BYTES} bytes of UTF-8.")
    deadline_s: Clock | None = Field(None, json_schema_extra={"default": 3600})
    max_attempts: Annotated[int, Field(ge=1, le=10), BeforeValidator(whole)] | None = Field(
        None,
        description="Turns that the step may take: the caller's decision to run a delivered prompt again.",
        json_schema_extra={"default": 1},
    )
    on_failure: OnFailure | None = Field(
        None,
        description="`continue`: the next step runs although this one failed or timed out.",
        json_schema_extra={"default": "stop"},
    )

    def named(self, number: int) -> str:
        """Its name, as the step of that number."""
        return self.name if self.name is not None else f"step-{number}"


def _names_differ(steps: list[StepBody]) -> list[StepBody]:
    names = [step.named(number) for number, step in enumerate(steps, start=1)]
    if len(set(names)) < len(names):
        raise ValueError("the names of the steps must differ")
    return steps


class TaskBody(RequestBody):
    """A task as it is wanted."""

    session_id: SessionIdText
    steps: Annotated[list[StepBody], Field(min_length=1, max_length=MAX_STEPS), AfterValidator(_names_differ)]

    def to_domain(self) -> tuple[SessionId, list[StepRequest]]:
        """The session and the steps; what is not said has its default."""
        steps = []
        for number, step in enumerate(self.steps, start=1):
            said = step.model_dump(exclude_none=True) | {"name": step.named(number)}
            steps.append(StepRequest(**said))
        return SessionId(self.session_id), steps


class StepErrorView(View):
    """Why a step did not complete."""

    code: StepErrorCode
    message: str
    retriable: bool


class TaskStepView(View):
    """A step; one that was not reached is `pending`."""

    name: str
    status: TaskStatus
    turn_ids: list[str] = Field(description="Its turns, oldest first: one for every attempt and retry.")
    error: StepErrorView | None

    @classmethod
    def from_domain(cls, step: TaskStep) -> Self:
        """A step as its owner sees it."""
        error = step.error
        return cls(
            name=step.name,
            status=step.status,
            turn_ids=list(step.turn_ids),
            error=StepErrorView(code=error.code, message=error.message, retriable=error.retriable)
            if error is not None
            else None,
        )


class TaskView(View):
    """A task: steps on one session, one turn after the other."""

    task_id: str
    session_id: str
    status: TaskStatus
    steps: list[TaskStepView]
    created_at: Timestamp
    ended_at: Timestamp | None

    @classmethod
    def from_domain(cls, task: Task) -> Self:
        """A task as its owner sees it."""
        return cls(
            task_id=task.id,
            session_id=task.session_id,
            status=task.status,
            steps=[TaskStepView.from_domain(step) for step in task.steps],
            created_at=task.created_at,
            ended_at=task.ended_at,
        )


class TaskList(ListView[TaskView]):
    """Tasks, newest first."""
