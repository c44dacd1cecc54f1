"""What `paseo logs` shows of an agent: plain text, in which only a person can be sure who says what.

A prompt stands after `[User] `, a thought after `[Thought] `, then what was done: a tool call as `[Shell] ls`
or a plan as `[Tasks]` and its steps. The agent's own words have no mark, and nothing escapes what looks like
one. Asked for the talk alone, the command leaves out what was done, and so tells words from tool calls for
certain; but it runs together what the agent said before a tool call and after it.
"""

import re

NOTHING = "No activity to display."
"""What is shown of an agent that nothing happened with."""
_USER = "[User] "
_THOUGHT = "[Thought] "
_FAILURE = "[System Error] "
_BLANKS = (
    "\t\n\v\f\r \u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000\ufeff"
)
"""What the command takes off both ends of a text (ECMAScript, String.prototype.trim)."""
_NOT_SAID = re.compile(rf"^({re.escape(_USER)}|{re.escape(_THOUGHT)})", re.MULTILINE)


def answer_to(prompt: str, log: str, *, last: bool = False) -> str | None:
    """What follows that prompt, the first or the last time that it stands there; null if it does not."""
    lines = f"\n{log}"
    sent = prompt.encode(errors="replace").decode()
    shown = f"\n{_USER}{sent.strip(_BLANKS)}\n"
    at = lines.rfind(shown) if last else lines.find(shown)
    return lines[at + len(shown) :] if at >= 0 else None


def is_followed(answer: str) -> bool:
    """Whether another prompt stands in what follows a prompt."""
    return any(line.startswith(_USER) for line in answer.split("\n"))


def words(answer: str, *, failure: str | None = None) -> str:
    """What the agent said, of the talk that follows its prompt; thoughts always come after words there.

    `failure` is how its turn failed: the daemon adds that to what the agent said.
    """
    end = _NOT_SAID.search(answer)
    said = answer[: end.start()] if end is not None else answer
    before, mark, after = said.rpartition(_FAILURE)
    if mark and failure is not None and after.startswith(failure.strip().split("\n")[0]):
        said = before
    return said.strip("\n")


def parted(said: str, answer: str) -> str:
    """The words, on new lines where something else was shown in between, in all that follows the prompt."""
    told, at, is_thought = "", 0, False
    for line in answer.split("\n"):
        if line.startswith(_USER):
            break
        is_thought = line.startswith(_THOUGHT) or (is_thought and not line.startswith("["))
        line = line.strip(_BLANKS)
        start = at
        while start < len(said) and said[start] in _BLANKS:
            start += 1
        if is_thought or not line or not said.startswith(line, start):
            continue
        gap = said[at:start]
        told += (gap if "\n" in gap or not told else "\n") + line
        at = start + len(line)
    return said if said[at:].strip(_BLANKS) else told
