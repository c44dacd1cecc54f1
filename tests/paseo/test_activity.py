"""What an agent said, read out of what `paseo logs` shows, as the real command was seen to write it."""

import pytest

from app.paseo import activity

WHOLE = """[User] say hi
hi
[User] two
lines
[INFO] first
is
[Thought] hm
[Read] nothing

[Shell] ls -la
[Read] README.md
[Tasks]
- [x] a
- [ ] b
second
[User] say hi
again
"""
TALK = """[User] say hi
hi
[User] two
lines
[INFO] first
issecond
[User] say hi
again
"""


def test_an_answer_is_what_follows_its_prompt() -> None:
    assert activity.answer_to("say hi", TALK, last=True) == "again\n"
    assert activity.answer_to("hi", TALK) is None
    assert activity.answer_to("say hi", activity.NOTHING) is None


@pytest.mark.parametrize("sent", ["say hi ", "\ufeffsay hi", "\n say hi\u2028"])
def test_a_prompt_is_shown_without_its_blanks(sent: str) -> None:
    assert activity.answer_to(sent, TALK) is not None


def test_a_prompt_is_found_that_no_file_can_hold() -> None:
    assert activity.answer_to("say \ud800", "[User] say ?\nhi\n") == "hi\n"


def test_what_an_agent_said_is_told_whole_and_what_it_did_is_not() -> None:
    """A line of its own that begins like a tool call stays, and a thought of many lines does not come in."""
    answer, shown = (activity.answer_to("two\nlines", log) for log in (TALK, WHOLE))
    assert answer is not None and shown is not None
    assert activity.may_be_followed(answer)
    words = activity.words(answer, followed=True)
    assert words == "[INFO] first\nissecond"
    assert activity.parted(words, shown) == "[INFO] first\nis\nsecond"


def test_an_answer_that_looks_like_a_prompt_or_a_thought_is_told_whole() -> None:
    words = "one\n[User] two\n[Thought] three\nfour"
    assert activity.words(f"{words}\n") == words
    assert activity.parted(words, f"{words}\n[Thought] hm\n") == words
    assert activity.parted(words.replace("\nfour", "four"), f"{words}\n[Thought] hm\n") == words


def test_the_last_prompt_is_known_by_its_text() -> None:
    assert activity.is_last(" two\nlines\n", "[User] two\nlines\n")
    assert not activity.is_last("lines", "[User] two\nlines\n")


def test_blank_lines_of_an_answer_stay() -> None:
    words = "one\n\n\n  two\nthree"
    assert activity.parted(words, "one\n\n\n  two\n[Shell] ls\nthree\n") == words
    assert activity.parted("one\n\ntwothree", "one\n\ntwo\n[Shell] ls\nthree\n") == "one\n\ntwo\nthree"


def test_words_that_are_not_found_again_are_told_as_they_are() -> None:
    assert activity.parted("one two", "something else\n") == "one two"
    assert activity.parted("one two", "") == "one two"


def test_what_the_daemon_says_of_a_failure_is_no_answer() -> None:
    """It runs together with what the agent said before."""
    shown = "last words[System Error] the agent exited (3)\n\ntold to crash\n"
    assert activity.words(shown, failure="the agent exited (3)") == "last words"
    assert activity.words("quoting [System Error] x", failure="other") == "quoting [System Error] x"
    assert activity.words("quoting [System Error] x") == "quoting [System Error] x"
