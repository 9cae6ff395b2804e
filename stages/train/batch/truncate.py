"""What becomes of a pair whose prompt and response are longer than `max_length` together. Pure.

drop: the pair is left out and counted (`too_long`).
keep_end: what was published trained on cut responses. The response loses the tokens before its end-of-turn token, if
it has one, which stays: published code cut that off, and so taught long responses not to end. Counted (`truncated`).
A pair whose prompt leaves a response no room for a token and the end of its turn is left out in either case.
"""

from __future__ import annotations

from collections.abc import Sequence


def fitted(prompt: int, response: Sequence[int], ended: bool, max_length: int) -> list[int]:
    """Return a response's tokens for a prompt of so many; whole if there is no room for two of them.

    ended: its last token ends its turn, since it was not capped.
    """
    room = max_length - prompt
    if len(response) <= room or room < 2:
        return list(response)
    return [*response[: room - 1], response[-1]] if ended else list(response[:room])
