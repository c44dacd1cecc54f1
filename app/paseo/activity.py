"""What `paseo logs` shows of an agent: plain text, in which only a person can be sure who says what.

A prompt stands after `[User] `, a thought after `[Thought] `, then what was done: a tool call as `[Shell] ls`
or a plan as `[Tasks]` and its steps. The agent's own words have no mark, and nothing escapes what looks like
one. Asked for the talk alone, the command leaves out what was thought and done, and so tells words from these
for certain; but it runs together what the agent said before and after. Asked for the last prompt alone, it
tells whether a prompt that stands in an answer is one, or words.
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
_PROMPT = re.compile(rf"^{re.escape(_USER)}", re.MULTILINE)


def answer_to(prompt: str, log: str, *, last: bool = False) -> str | None:
    """What follows that prompt, the first or the last time that it stands there; null if it does not."""
    lines = f"\n{log}"
    shown = f"\n{_shown(prompt)}\n"
    at = lines.rfind(shown) if last else lines.find(shown)
    return lines[at + len(shown) :] if at >= 0 else None


def _shown(prompt: str) -> str:
    return f"{_USER}{prompt.encode(errors='replace').decode().strip(_BLANKS)}"


def may_be_followed(answer: str) -> bool:
    """Whether what follows a prompt has something in it that looks like another one."""
    return _PROMPT.search(answer) is not None


def is_last(prompt: str, last: str) -> bool:
    """Whether that is the last prompt that a log shows."""
    return last.rstrip("\n") == _shown(prompt).rstrip("\n")


def words(answer: str, *, followed: bool = False, failure: str | None = None) -> str:
    """What the agent said, of the talk that follows its prompt; up to the next one, if it is `followed`.

    `failure` is how its turn failed: the daemon adds that to what the agent said.
    """
    end = _PROMPT.search(answer) if followed else None
    said = answer[: end.start()] if end is not None else answer
    before, mark, after = said.rpartition(_FAILURE)
    if mark and failure is not None and after.startswith(failure.strip().split("\n")[0]):
        said = before
    return said.strip("\n")


def parted(said: str, answer: str) -> str:
    """The words, on new lines where something else was shown in between, in all that follows the prompt."""
    told, at, is_thought = "", 0, False
    for line in answer.split("\n"):
        start = at
        while start < len(said) and said[start] in _BLANKS:
            start += 1
        shown, line = line, line.strip(_BLANKS)
        is_said = said.startswith(line, start)
        if shown.startswith(_USER) and not is_said:
            break
        begins_thought = shown.startswith(_THOUGHT) and not is_said
        is_thought = begins_thought or (is_thought and not shown.startswith("["))
        if is_thought or not line or not is_said:
            continue
        gap = said[at:start]
        told += (gap if "\n" in gap or not told else "\n") + line
        at = start + len(line)
    return said if said[at:].strip(_BLANKS) else told
