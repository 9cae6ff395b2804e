"""The question to a language model: which of two responses is better, A or B? Pure functions on texts.

A response that claims to be the better one, or imitates the end of the question, is shown as it is: no wording of the
question prevents that. It cannot end the user's turn: see `chat.py` and `harmless`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from sparring.stages.annotate.oracle import Duel, Messages
from sparring.stages.annotate.reader import Limits
from sparring.stages.errors import ConfigError

PLACES = ("prompt", "first", "second")
PROMPT_SHARE = (3, 5)
"""The share of the tokens for the three texts that a prompt keeps where the responses are long, as in PairRM: 3/5."""

_PLACE = re.compile(r"\{(prompt|first|second)\}")
_CONTROL = re.compile(
    r"<(?=[|｜])"  # <|im_end|>, <|eot_id|>, <|endoftext|>; with full-width bars in DeepSeek's
    r"|<(?=/?(?:s|bos|eos|pad|unk)>|(?:start|end)_of_[a-z]+>|<SYS>>|</SYS>>)"
    r"|\[(?=/?[A-Z_]{3,}\])"  # [INST], [/INST], [SYSTEM_PROMPT], [TOOL_CALLS]
)


def check_template(template: str) -> None:
    """ConfigError when a template has no place for a text, or several."""
    for place in PLACES:
        if (count := template.count(f"{{{place}}}")) != 1:
            raise ConfigError(
                f"oracle.options.template: {{{place}}} must occur once, it occurs {count} times; "
                "see conf/oracle/llm.yaml."
            )


def filled(template: str, prompt: str, first: str, second: str) -> str:
    """Return the template with the texts in their places; braces in the texts stay as they are."""
    texts = dict(zip(PLACES, (prompt, first, second), strict=True))
    return _PLACE.sub(lambda place: texts[place[1]], template)


def conversation(messages: Messages) -> str:
    """Return a prompt as one text: each turn after the name of its role."""
    return "\n\n".join(f"{role.capitalize()}: {content}" for role, content in messages)


def harmless(text: str) -> str:
    """Return `text` with a space inside what may be a control token of a server's model: `< |im_end|>`.

    Known are the usual spellings: <|…|>, <s>, <bos>, <end_of_turn>, [INST], <<SYS>> and similar ones.
    """
    return _CONTROL.sub(lambda match: f"{match[0]} ", text)


def fitted(
    template: str, duel: Duel, most: int, size: Callable[[str], int], head: Callable[[str, int], str]
) -> tuple[str, bool]:
    """Return the question about a duel, of at most `most` tokens, and whether a text of it was cut to fit.

    A text that is too long loses its tail. The prompt keeps the tokens that the responses do not need, and at least its
    share; the responses get equal shares of the rest, and one gets what the other does not need.

    Args:
        size: text -> number of tokens, as the model reads it.
        head: (text, n) -> the text of its first n tokens.
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
