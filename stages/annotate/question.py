"""The question to a language model: which of two responses is better, A or B. Pure functions on texts.

A response that claims to be the better one, or imitates the end of the question, is still shown: no wording is proof
against that. What cannot happen is that it ends the user's turn, see `chat.py` and `harmless`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from sparring.stages.annotate.oracle import Duel, Messages
from sparring.stages.annotate.reader import Limits
from sparring.stages.errors import ConfigError

PLACES = ("prompt", "first", "second")
PROMPT_SHARE = (3, 5)
"""Of the tokens left for the three texts: what a prompt keeps where responses are long, PairRM's share."""

_PLACE = re.compile(r"\{(prompt|first|second)\}")
_CONTROL = re.compile(
    r"<(?=[|｜])"  # <|im_end|>, <|eot_id|>, <|endoftext|>; with full-width bars in DeepSeek's
    r"|<(?=/?(?:s|bos|eos|pad|unk)>|(?:start|end)_of_[a-z]+>|<SYS>>|</SYS>>)"
    r"|\[(?=/?[A-Z_]{3,}\])"  # [INST], [/INST], [SYSTEM_PROMPT], [TOOL_CALLS]
)


def check_template(template: str) -> None:
    """ConfigError when a template has not one place for each text."""
    for place in PLACES:
        if (count := template.count(f"{{{place}}}")) != 1:
            raise ConfigError(
                f"oracle.options.template: {{{place}}} must occur once, it occurs {count} times; "
                "see conf/oracle/llm.yaml."
            )


def filled(template: str, prompt: str, first: str, second: str) -> str:
    """Return the question; braces in the texts are text."""
    texts = dict(zip(PLACES, (prompt, first, second), strict=True))
    return _PLACE.sub(lambda place: texts[place[1]], template)


def conversation(messages: Messages) -> str:
    """Return a prompt as text: every turn under the name of its role."""
    return "\n\n".join(f"{role.capitalize()}: {content}" for role, content in messages)


def harmless(text: str) -> str:
    """Return `text` with a space inside whatever may be a control token of a server's model: `< |im_end|>`.

    Only the usual spellings are known: <|…|>, <s>, <bos>, <end_of_turn>, [INST], <<SYS>> and their kin.
    """
    return _CONTROL.sub(lambda match: f"{match[0]} ", text)


def fitted(
    template: str, duel: Duel, most: int, size: Callable[[str], int], head: Callable[[str, int], str]
) -> tuple[str, bool]:
    """Return the question about a duel, and whether a text of it was cut so that it has at most `most` tokens.

    A text that is too long loses its tail. The prompt keeps what the responses leave, and its share at least; the
    responses have equal shares of the rest, and what a short one leaves goes to the other.

    size: tokens of a question as the model reads it. head: the first tokens of a text, as text.
    """
    texts = (conversation(duel.prompt), duel.first, duel.second)
    question = filled(template, *texts)
    if (length := size(question)) <= most:
        return question, False
    own = size(filled(template, "", "", ""))
    sizes = [size(filled(template, text, "", "")) - own for text in texts]
    free = min(most - own, sum(sizes) - (length - most))
    while free > 0:
        prompt, first, second = sizes
        share = free * PROMPT_SHARE[0] // PROMPT_SHARE[1]
        kept = Limits(source=max(share, free - first - second), total=free).fit(prompt, first, second)
        heads = [
            text if left == length else head(text, left) for text, left, length in zip(texts, kept, sizes, strict=True)
        ]
        cut = filled(template, *heads)
        if (length := size(cut)) <= most:
            return cut, True
        free -= length - most
    raise ConfigError(
        f"oracle.options.max_tokens={most}: the template alone has {own} tokens of the model; raise it, the texts of a "
        "duel need tokens too."
    )
