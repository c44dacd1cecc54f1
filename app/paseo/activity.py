"""What `paseo logs` shows of an agent: plain text, in which only a person can be sure who says what.

Each item begins on a line of its own: a prompt with `[User] `, what is neither prompt nor answer with a mark
such as `[Tool: execute] completed`; the agent's own words have none. Nothing escapes a line of a prompt or an
answer that looks like such a mark.
"""

import re

NOTHING = "No activity to display."
"""What is shown of an agent that nothing happened with."""
_USER = "[User] "
_MARK = re.compile(
    r"\[(Reasoning|Thought|Tool: [^\]]*|Todo|Plan|System Error|Permission [^\]]*|Attention [^\]]*)\]"
)


def answer_to(prompt: str, log: str, *, last: bool = False) -> str | None:
    """What follows that prompt, the first or the last time that it stands there; null if it does not."""
    lines = f"\n{log}"
    for text in dict.fromkeys((prompt, prompt.strip())):
        shown = f"\n{_USER}{text}\n"
        at = lines.rfind(shown) if last else lines.find(shown)
        if at >= 0:
            return lines[at + len(shown) :]
    return None


def is_followed(answer: str) -> bool:
    """Whether another prompt stands in what follows a prompt."""
    return any(line.startswith(_USER) for line in answer.splitlines())


def words(answer: str) -> str:
    """What the agent said, of what follows its prompt."""
    said = [line for line in answer.split("\n") if _MARK.match(line) is None]
    return "\n".join(said).strip("\n")
