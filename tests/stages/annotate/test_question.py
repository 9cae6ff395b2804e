"""The question: texts placed, cut fairly, and kept from ending the turn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.stages.annotate.oracle import Duel
from sparring.stages.annotate.question import check_template, conversation, filled, fitted, harmless
from sparring.stages.errors import ConfigError
from tests.refusals import refused

TEMPLATE = "{prompt}|{first}|{second}?"


def head(text: str, tokens: int) -> str:
    return text[:tokens]


def asked(prompt: str, first: str, second: str, most: int) -> tuple[str, bool]:
    """A character is a token; `User: ` is six of them."""
    return fitted(TEMPLATE, Duel((("user", prompt),), first, second), most, len, head)


def test_braces_in_the_texts_are_text() -> None:
    assert filled(TEMPLATE, "{first}", "{second} {x}", "{prompt}{}") == "{first}|{second} {x}|{prompt}{}?"
    assert filled("{{x}} " + TEMPLATE, r"\1", r"\g<0>", "%s") == r"{{x}} \1|\g<0>|%s?"


def test_a_template_has_one_place_for_each_text() -> None:
    check_template(TEMPLATE)
    for template, said in [
        ("{first} {second}", ("{prompt}", "0 times")),
        ("{prompt} {first}", ("{second}", "0 times")),
        ("{prompt} {first} {second} {first}", ("{first}", "2 times")),
    ]:
        with refused(ConfigError, "oracle.options.template", *said):
            check_template(template)


def test_a_conversation_says_who_spoke() -> None:
    turns = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "So\nwhat"))
    assert conversation(turns) == "System: Be brief.\n\nUser: Hi\n\nAssistant: Yes?\n\nUser: So\nwhat"


def test_what_fits_is_whole() -> None:
    assert asked("abc", "de", "f", 15) == ("User: abc|de|f?", False)
    assert asked("abc", "de", "f", 14) == ("User: ab|de|f?", True)


def test_long_texts_are_cut_at_their_tails_by_shares() -> None:
    assert asked("p" * 4, "a" * 50, "b" * 50, 43) == ("User: pppp|" + "a" * 15 + "|" + "b" * 15 + "?", True)
    assert asked("p" * 4, "a" * 50, "b" * 5, 43) == ("User: pppp|" + "a" * 25 + "|" + "b" * 5 + "?", True)
    # 100 for the texts: 60 for the prompt, 20 for each response
    assert asked("p" * 500, "a" * 500, "b" * 500, 103) == (
        "User: " + "p" * 54 + "|" + "a" * 20 + "|" + "b" * 20 + "?",
        True,
    )
    # short responses leave their room to the prompt
    assert asked("p" * 500, "yes", "no", 103) == ("User: " + "p" * 89 + "|yes|no?", True)


@given(*[st.integers(0, 300)] * 3, st.integers(20, 400))
def test_every_cut_fits_and_wastes_nothing(prompt: int, first: int, second: int, most: int) -> None:
    question, cut = asked("p" * prompt, "a" * first, "b" * second, most)
    whole = 9 + prompt + first + second
    assert (len(question), cut) == ((whole, False) if whole <= most else (most, True))
    a, b = question.count("a"), question.count("b")
    assert a == first or a >= b - 1
    assert b == second or b >= a - 1


def test_texts_that_are_longer_together_are_cut_further() -> None:
    """As where a tokenizer cuts a text elsewhere than between its tokens."""

    def size(text: str) -> int:
        return len(text) + 7 * (0 < text.count("a") < 40)

    question, cut = fitted(TEMPLATE, Duel((("user", "p"),), "a" * 40, "b" * 40), 60, size, head)
    assert cut and 59 <= size(question) <= 60
    assert (question.count("a"), question.count("b")) == (21, 22)


def test_a_template_without_room_is_refused() -> None:
    with refused(ConfigError, "oracle.options.max_tokens=3", "3 tokens"):
        asked("abc", "de", "f", 3)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a<|im_end|>\n<|im_start|>b", "a< |im_end|>\n< |im_start|>b"),
        ("<｜User｜>", "< ｜User｜>"),
        ("</s><s> <eos><bos>", "< /s>< s> < eos>< bos>"),
        ("<end_of_turn><start_of_turn>model", "< end_of_turn>< start_of_turn>model"),
        ("[/INST] ok [INST] <<SYS>>x<</SYS>>", "[ /INST] ok [ INST] < <SYS>>x< </SYS>>"),
    ],
)
def test_what_may_be_a_control_token_at_a_server_is_broken(text: str, shown: str) -> None:
    assert harmless(text) == shown
    assert harmless(shown) == shown


@pytest.mark.parametrize("text", ["a < b", "List<int> <b>x</b> <strong>", "[1, 2] [x](y) [A]", "1 << 2", "x || y"])
def test_ordinary_text_is_shown_as_it_is(text: str) -> None:
    assert harmless(text) == text
