"""What the daemon's texts mean; each was seen."""

import pytest

from app.paseo.errors import Reason, classify


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Agent not found: 0000", Reason.AGENT_NOT_FOUND),
        ("Request failed: Agent not found: 0000", Reason.AGENT_NOT_FOUND),
        ("Unknown agent '0000'", Reason.AGENT_NOT_FOUND),
        ("Agent identifier cannot be empty", Reason.AGENT_NOT_FOUND),
        ("acp does not support ACP session resume", Reason.CANNOT_RESUME),
        ("Unknown provider 'nope'. Configured providers: claude", Reason.UNKNOWN_PROVIDER),
        ("Unknown provider: nope", Reason.UNKNOWN_PROVIDER),
        ("No client registered for provider 'x'", Reason.UNKNOWN_PROVIDER),
        ("Provider 'x' is not available. Available providers: y", Reason.PROVIDER_UNAVAILABLE),
        ("Provider switched-off is disabled", Reason.PROVIDER_UNAVAILABLE),
        ("Error: spawn no-such-agent-binary ENOENT", Reason.PROVIDER_UNAVAILABLE),
        ("Codex binary not found. Install it", Reason.PROVIDER_UNAVAILABLE),
        ("Working directory does not exist: /no/such/dir", Reason.BAD_CWD),
        ("cwd must be absolute path", Reason.BAD_CWD),
        ("OpenCode sessions require --cwd when importing", Reason.BAD_CWD),
        ("Create worktree requires a git repository", Reason.BAD_WORKTREE),
        ("Base branch not found: nope", Reason.BAD_WORKTREE),
        ("Request failed: No pending permission request with id 'x'", Reason.PERMISSION_GONE),
        ("Terminal not found", Reason.TERMINAL_NOT_FOUND),
        ("A foreground turn is already active", Reason.TURN_ACTIVE),
        ("timeout", Reason.START_UNCERTAIN),
        ("run finished before starting", Reason.START_UNCERTAIN),
        ("ACP agent exited unexpectedly (3)", Reason.PROCESS_DEAD),
        ("OpenCode event stream ended before the turn reached a terminal state", Reason.PROCESS_DEAD),
        ("OpenCode server failed to start", Reason.PROCESS_DEAD),
        ("acp does not expose ACP thought-level selection", Reason.UNSUPPORTED),
        ("[object Object]", Reason.OTHER),
        ("the model said: agent not found", Reason.OTHER),
        ("timeout of the model", Reason.OTHER),
        ("", Reason.OTHER),
    ],
)
def test_what_a_text_means(text: str, reason: Reason) -> None:
    assert classify(text) is reason
    assert classify(text, "unknown_schema") is Reason.INVALID_REQUEST
