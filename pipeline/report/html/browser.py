"""The prompts of a report: each with its responses, who beats whom, what the gate left, and the pair. No script needed.

The script only hides what does not match. As much is shown as there is room for, an equal share for each iteration.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sparring.pipeline.report.html.gather import Story
from sparring.pipeline.report.html.markup import Html, join, table, tag
from sparring.pipeline.report.html.prompts import DRAWN, WIDEST, Chosen, Prompt, Row

BUDGET = 1_500_000
"""Bytes of all prompts together, at most."""
PROMPT, RESPONSE, TITLE = 1000, 700, 90
"""Characters that are shown of a turn of the prompt, of a response, and of the prompt where it is folded."""
MATRIX = 12
"""Responses up to which the matrices are shown."""


def browser(stories: Sequence[Story], room: int = BUDGET) -> Html:
    """Return the prompts with the fields that filter them, in `room` bytes; '' without any."""
    groups = list(_groups(stories))
    if not groups:
        return Html("")
    shown = [_fitting(t, name, chosen, room // len(groups)) for t, name, chosen in groups]
    every = sum(chosen.of for _, _, chosen in groups)
    cards = [card for cards in shown for card in cards]
    reasons = sorted({p.reason for _, _, chosen in groups for p in chosen.prompts if p.reason})
    return join(
        [
            tag("p", _told(len(cards), every), class_="quiet"),
            _fields(sorted({t for t, _, _ in groups}), list(dict.fromkeys(name for _, name, _ in groups)), reasons),
            tag("div", *cards, id="prompts"),
        ]
    )


def _told(shown: int, every: int) -> str:
    return (
        f"{shown:,} of {every:,} prompts are shown: per iteration at most {WIDEST} with the largest |P − ½| and "
        f"{DRAWN} others, drawn by the hash of their ids. Texts are cut: prompts at {PROMPT:,} characters a turn, "
        f"responses at {RESPONSE:,}. `sparring inspect` shows any prompt whole."
    )


def _groups(stories: Sequence[Story]) -> Iterator[tuple[int, str, Chosen]]:
    """Yield (iteration, arms, prompts); what arms share is shown once, under all their names."""
    shared: dict[int, tuple[int, list[str], Chosen]] = {}
    for story in stories:
        for t, chosen in story.prompts.items():
            shared.setdefault(id(chosen), (t, [], chosen))[1].append(story.name)
    for t, names, chosen in sorted(shared.values(), key=lambda one: one[0]):
        yield t, ", ".join(names) if len(stories) > 1 else "", chosen


def _fitting(t: int, arms: str, chosen: Chosen, room: int) -> list[Html]:
    """Return the prompts that fit into `room` bytes, those that are drawn between the widest: both kinds remain."""
    cards = []
    for prompt in _mixed(chosen.prompts):
        made = card(t, arms, prompt)
        room -= len(made.encode())
        if room < 0:
            break
        cards.append(made)
    return cards


def _mixed(prompts: Sequence[Prompt]) -> list[Prompt]:
    half = -(-len(prompts) // 2)
    pairs = zip(prompts[:half], [*prompts[half:], None], strict=False)
    return [one for pair in pairs for one in pair if one]


def _fields(iterations: Sequence[int], arms: Sequence[str], reasons: Sequence[str]) -> Html:
    text = tag("label", "Text ", tag("input", type="search", id="by-text", autocomplete="off"))
    fields = [text, _choice("Iteration", "by-iteration", [str(t) for t in iterations])]
    if len(arms) > 1:
        fields.append(_choice("Arm", "by-arm", arms))
    fields.append(_choice("Outcome", "by-reason", reasons))
    return tag("form", *fields, tag("output", id="matching"), id="filter", hidden=True)


def _choice(name: str, id_: str, values: Sequence[str]) -> Html:
    options = [tag("option", "all", value=""), *(tag("option", value, value=value) for value in values)]
    return tag("label", f"{name} ", tag("select", *options, id=id_))


def card(t: int, arms: str, prompt: Prompt) -> Html:
    """Return one prompt, folded."""
    asked = " ".join(prompt.messages[-1]["content"].split()) if prompt.messages else prompt.id
    title = asked if len(asked) <= TITLE else f"{asked[:TITLE]} …"
    outcome = _outcome(prompt)
    head = tag("summary", tag("span", title, class_="title"), tag("span", f"iteration {t} · {outcome}", class_="quiet"))
    parts = [head, tag("p", "id ", tag("code", prompt.id), f" {arms}", class_="quiet")]
    parts += [_turn(message) for message in prompt.messages]
    parts += [_response(i, row, prompt) for i, row in enumerate(prompt.responses)]
    parts += [_matrices(prompt), *(_pair(row) for row in prompt.pairs)]
    return tag("details", *parts, class_="prompt", data_iteration=t, data_arm=arms, data_reason=prompt.reason)


def _outcome(prompt: Prompt) -> str:
    if not prompt.pairs:
        return f"no pair: {prompt.reason}" if prompt.reason else "no pair"
    return ", ".join(f"{row['chosen']} over {row['rejected']}" for row in prompt.pairs[:3])


def cut(text: str, most: int) -> str:
    """Return at most `most` characters, and how many were left out."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"


def _turn(message: Row) -> Html:
    return tag("div", tag("b", message["role"]), tag("pre", cut(message["content"], PROMPT)), class_="turn")


def _response(i: int, row: Row, prompt: Prompt) -> Html:
    roles = [name for name in ("chosen", "rejected") if any(pair[name] == i for pair in prompt.pairs)]
    rate = "" if prompt.rates is None else f", win rate {prompt.rates[i]:.3f}"
    ending = "cut at the limit" if row["finish"] == "length" else "ended by itself"
    told = f"{len(row['ids'])} tokens, {ending}{rate}"
    badges = [tag("span", role, class_=f"badge {role}") for role in roles]
    head = tag("div", tag("b", f"[{i}]"), " ", *badges, tag("span", told, class_="quiet"))
    return tag("div", head, tag("pre", cut(row["text"], RESPONSE)), class_=" ".join(["response", *roles]))


def _matrices(prompt: Prompt) -> Html:
    if prompt.p is None:
        return Html("")
    if len(prompt.p) > MATRIX:
        return tag("p", f"The matrix of {len(prompt.p)} responses is left out.", class_="quiet")
    parts = [_matrix("P: row beats column", prompt.p)]
    if prompt.gated is not None:
        parts.append(_matrix("P̃: after the gate", prompt.gated))
    return tag("div", *parts, class_="matrices")


def _matrix(title: str, values: NDArray[np.float64]) -> Html:
    rows = [[str(i), *("" if np.isnan(v) else f"{v:.2f}" for v in row)] for i, row in enumerate(values)]
    return tag("div", tag("p", title, class_="quiet"), table(("", *map(str, range(len(values)))), rows, "matrix"))


def _pair(row: Row) -> Html:
    """Return what is trained on: the win rates, and the targets that the gate left of them."""
    if "target_w" not in row:
        return tag("p", f"Pair {row['chosen']} over {row['rejected']}; no targets yet.", class_="quiet")
    flipped = " The gate turned the pair around." if row["flipped"] else ""
    return tag(
        "p",
        f"Pair {row['chosen']} over {row['rejected']}: chosen {row['p_w']:.3f} → target {row['target_w']:.3f}, "
        f"rejected {row['p_l']:.3f} → {row['target_l']:.3f}, gate {row['gate_wl']:.3f}.{flipped}",
    )
