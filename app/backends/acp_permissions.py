"""What an ACP agent asks a person: permissions for tool calls, and questions (`elicitation/create`). Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from app.backends.base import Answer, BackendRejected
from app.domain.details import PlanText
from app.domain.events import PermissionKind, PermissionOption, PermissionOutcome, Question
from app.domain.signals import PermissionAsked, ToolCall

CANCELLED: Mapping[str, Any] = {"outcome": {"outcome": "cancelled"}}
"""The answer to a permission request whose turn is being cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """What is sent to the agent, and how that is recorded."""

    result: Mapping[str, Any]
    outcome: PermissionOutcome
    option_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolPermission:
    """An agent waits for leave to run a tool call."""

    options: tuple[PermissionOption, ...]

    def asked(self, request: str, call: ToolCall, raw_input: Any) -> PermissionAsked:
        """The signal that tells of it."""
        kind: PermissionKind = "tool"
        if call.kind == "switch_mode":
            kind = "plan" if isinstance(call.detail, PlanText) else "mode"
        return PermissionAsked(
            request=request,
            kind=kind,
            title=call.title or call.name or call.kind,
            call=call.call,
            detail=call.detail,
            input=raw_input,
            options=self.options,
        )

    def resolved(self, answer: Answer) -> Resolution:
        """What `answer` comes to.

        Raises:
            BackendRejected: it names an option that was not offered, or edits the input.
        """
        if answer.updated_input is not None:
            raise BackendRejected("an ACP agent does not take an edited input")
        option = self._option(answer)
        if option is None:
            return Resolution(result=CANCELLED, outcome="denied")
        return Resolution(
            result={"outcome": {"outcome": "selected", "optionId": option.option_id}},
            outcome="allowed" if answer.allow else "denied",
            option_id=option.option_id,
        )

    def cancelled(self) -> Resolution:
        """The turn is being cancelled."""
        return Resolution(result=CANCELLED, outcome="cancelled")

    def _option(self, answer: Answer) -> PermissionOption | None:
        """The option to select; null only for a denial where the agent offers none."""
        wanted = ("allow_once", "allow_always") if answer.allow else ("reject_once", "reject_always")
        if answer.option_id is not None:
            for option in self.options:
                if option.option_id == answer.option_id and option.kind in wanted:
                    return option
            raise BackendRejected(
                f"no option {answer.option_id!r} to {'allow' if answer.allow else 'deny'} with"
            )
        for kind in wanted:
            for option in self.options:
                if option.kind == kind:
                    return option
        if answer.allow:
            raise BackendRejected("the agent offers no option to allow this")
        return None


def tool_permission(params: Mapping[str, Any]) -> ToolPermission:
    """The options in `session/request_permission`; those of unknown kinds are not offered to anybody."""
    options = params.get("options")
    return ToolPermission(options=tuple(_options(options if isinstance(options, list) else [])))


def _options(options: list[Any]) -> Iterator[PermissionOption]:
    for option in options:
        match option:
            case {
                "optionId": str(id),
                "kind": ("allow_once" | "allow_always" | "reject_once" | "reject_always") as kind,
            }:
                label = option.get("name")
                yield PermissionOption(option_id=id, label=label if isinstance(label, str) else id, kind=kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One question of a form."""

    name: str
    title: str
    type: Literal["string", "number", "integer", "boolean", "array"]
    choices: Mapping[str, str]
    """The values that may be chosen, by label; empty where any will do."""
    required: bool

    def value(self, given: Any) -> Any:
        """`given` as the agent takes it: a label becomes its value, a word a number.

        Raises:
            BackendRejected: it is not of the field's type, or none of the choices.
        """
        if self.type == "array":
            return [self._chosen(item) for item in (given if isinstance(given, list | tuple) else [given])]
        if isinstance(given, list | tuple) and len(given) == 1:
            given = given[0]
        match self.type, given:
            case "string", str() | int() | float():
                return self._chosen(given)
            case "boolean", bool():
                return given
            case "boolean", str() if given.lower() in {"yes", "no", "true", "false"}:
                return given.lower() in {"yes", "true"}
            case "integer" | "number", (int() | float()) if not isinstance(given, bool):
                return given
            case "integer" | "number", str():
                try:
                    return int(given) if self.type == "integer" else float(given)
                except ValueError:
                    pass
        raise BackendRejected(f"{self.name} has to be of type {self.type}")

    def _chosen(self, given: Any) -> str:
        text = str(given)
        value = self.choices.get(text, text)
        if self.choices and value not in self.choices.values():
            raise BackendRejected(f"{self.name} has to be one of {', '.join(self.choices)}")
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """An agent waits for answers to questions."""

    message: str
    call: str | None
    fields: tuple[Field, ...]

    def asked(self, request: str) -> PermissionAsked:
        """The signal that tells of it. A question's header is the key that its answer has to have."""
        return PermissionAsked(
            request=request,
            kind="question",
            title=self.message,
            call=self.call,
            questions=tuple(
                Question(
                    question=field.title,
                    header=field.name,
                    options=("yes", "no") if field.type == "boolean" else tuple(field.choices),
                    multiple=field.type == "array",
                )
                for field in self.fields
            ),
        )

    def resolved(self, answer: Answer) -> Resolution:
        """What `answer` comes to.

        Raises:
            BackendRejected: a required answer is missing, one is of the wrong type, or an option is named.
        """
        if answer.option_id is not None or answer.updated_input is not None:
            raise BackendRejected("a question takes only answers")
        if not answer.allow:
            return Resolution(result={"action": "decline"}, outcome="denied")
        given = dict(answer.answers or {})
        if not given and len(self.fields) == 1 and answer.message is not None:
            given = {self.fields[0].name: answer.message}
        content = {}
        for field in self.fields:
            key = field.name if field.name in given else field.title
            if key in given:
                content[field.name] = field.value(given[key])
            elif field.required:
                raise BackendRejected(f"the question {field.name!r} has to be answered")
        return Resolution(result={"action": "accept", "content": content}, outcome="allowed")

    def cancelled(self) -> Resolution:
        """The turn is being cancelled."""
        return Resolution(result={"action": "cancel"}, outcome="cancelled")


def form(params: Mapping[str, Any]) -> Form | None:
    """The form in `elicitation/create`; null if it is none, or asks for something that we cannot show."""
    match params:
        case {
            "mode": "form",
            "message": str(message),
            "requestedSchema": {"properties": dict(properties)} as schema,
        }:
            required = schema.get("required")
            fields = [
                _field(name, schema, isinstance(required, list) and name in required)
                for name, schema in properties.items()
            ]
            call = params.get("toolCallId")
            known = tuple(field for field in fields if field is not None)
            if len(known) == len(fields):
                return Form(message=message, call=call if isinstance(call, str) else None, fields=known)
    return None


def _field(name: str, schema: Any, required: bool) -> Field | None:
    match schema:
        case {"type": ("string" | "number" | "integer" | "boolean" | "array") as type}:
            title = schema.get("description") or schema.get("title")
            return Field(
                name=name,
                title=title if isinstance(title, str) else name,
                type=type,
                choices=_choices(schema.get("items") if type == "array" else schema),
                required=required,
            )
        case _:
            return None


def _choices(schema: Any) -> dict[str, str]:
    match schema:
        case {"enum": list(values)}:
            return {str(value): str(value) for value in values}
        case {"oneOf": list(values)} | {"anyOf": list(values)}:
            return {
                str(value.get("title", value["const"])): str(value["const"])
                for value in values
                if isinstance(value, dict) and "const" in value
            }
        case _:
            return {}


Ask = ToolPermission | Form
