"""A permission in the daemon's words and in ours, both ways. Pure."""

from collections.abc import Mapping
from typing import Any

from app.backends.base import Answer, BackendRejected
from app.backends.paseo_translate import tool_detail
from app.domain.events import PermissionKind, PermissionOption, PermissionOutcome, Question
from app.domain.signals import PermissionAsked
from app.paseo.agents import Allow, Deny
from app.paseo.frames import PermissionRequest, Resolution

_KINDS: tuple[PermissionKind, ...] = ("tool", "plan", "question", "mode", "other")
_INTERRUPTED = "interrupted"
"""The message of the denial by which the daemon tells of a cancelled request."""


def permission_asked(request: PermissionRequest) -> PermissionAsked:
    """A permission request, with the options that the daemon honours."""
    metadata = request.metadata or {}
    call = metadata.get("toolCallId")
    kind: PermissionKind = next((one for one in _KINDS if one == request.kind), "other")
    return PermissionAsked(
        request=request.id,
        kind=kind,
        title=request.title or request.name or kind,
        description=request.description,
        call=call if isinstance(call, str) else None,
        detail=tool_detail(request.detail),
        input=request.input if request.input is not None else _raw_input(metadata),
        options=_options(request, metadata),
        questions=tuple(_questions(request.input)) if kind == "question" else (),
    )


def _raw_input(metadata: Mapping[str, Any]) -> Any:
    match metadata:
        case {"rawRequest": {"toolCall": {"rawInput": given}}}:
            return given
        case _:
            return None


def _options(request: PermissionRequest, metadata: Mapping[str, Any]) -> tuple[PermissionOption, ...]:
    """An ACP agent's answer is chosen by the daemon: of its options, only one for each answer counts."""
    if request.actions:
        return tuple(
            PermissionOption(
                option_id=str(action.get("id", "")),
                label=str(action.get("label", action.get("id", ""))),
                kind="allow_once" if action.get("behavior") == "allow" else "reject_once",
            )
            for action in request.actions
        )
    offered = [one for one in metadata.get("options") or [] if isinstance(one, dict)]
    honoured = (
        _first(offered, "allow_once", "allow_always"),
        _first(offered, "reject_once", "reject_always"),
    )
    return tuple(
        PermissionOption(
            option_id=str(one.get("optionId", "")), label=str(one.get("name", "")), kind=str(one["kind"])
        )
        for one in honoured
        if one is not None
    )


def _first(offered: list[dict[str, Any]], *kinds: str) -> dict[str, Any] | None:
    for kind in kinds:
        for one in offered:
            if one.get("kind") == kind:
                return one
    return None


def _questions(given: Any) -> list[Question]:
    found = given.get("questions") if isinstance(given, dict) else None
    questions = []
    for one in found if isinstance(found, list) else []:
        if isinstance(one, dict) and isinstance(one.get("question"), str):
            options = one.get("options") or []
            labels = [o.get("label") if isinstance(o, dict) else o for o in options]
            header = one.get("header")
            questions.append(
                Question(
                    question=one["question"],
                    header=header if isinstance(header, str) else None,
                    options=tuple(label for label in labels if isinstance(label, str)),
                    multiple=bool(one.get("multiple") or one.get("multiSelect")),
                )
            )
    return questions


def resolution_outcome(resolution: Resolution) -> PermissionOutcome:
    """How a permission ended; the daemon words a cancelled one as a denial that was interrupted."""
    match resolution.behavior:
        case "allow":
            return "allowed"
        case "deny":
            return "cancelled" if (resolution.message or "").lower() == _INTERRUPTED else "denied"
        case _:
            return "unknown"


def response_to(request: PermissionRequest, answer: Answer) -> Allow | Deny:
    """An answer in the daemon's words.

    Raises:
        BackendRejected: an option that was not offered or says otherwise, or an input that is not honoured.
    """
    if answer.option_id is not None:
        offered = {option.option_id: option for option in permission_asked(request).options}
        option = offered.get(answer.option_id)
        if option is None:
            raise BackendRejected(f"the option {answer.option_id!r} was not offered")
        if option.kind.startswith("allow") is not answer.allow:
            raise BackendRejected(f"the option {answer.option_id!r} means the opposite")
    if not answer.allow:
        return Deny(selected_action_id=answer.option_id, message=answer.message)
    if answer.updated_input is not None and request.provider == "acp":
        raise BackendRejected("this agent does not honour an edited input")
    given = answer.updated_input
    if answer.answers is not None:
        base = given if given is not None else request.input
        given = {**(base if isinstance(base, dict) else {}), "answers": dict(answer.answers)}
    return Allow(selected_action_id=answer.option_id, updated_input=given)
