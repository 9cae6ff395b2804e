"""The page: sections in order, the answer first; style and script inside, everything else forbidden by its policy."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from sparring.pipeline.diagnostics.rules import RULES
from sparring.pipeline.report.answer import answer
from sparring.pipeline.report.compare import Difference
from sparring.pipeline.report.html import curves, tables
from sparring.pipeline.report.html.bins import Counts
from sparring.pipeline.report.html.browser import BUDGET, browser
from sparring.pipeline.report.html.cost import cost
from sparring.pipeline.report.html.curves import by_arm, charts
from sparring.pipeline.report.html.differences import differences
from sparring.pipeline.report.html.games import games
from sparring.pipeline.report.html.gather import Story
from sparring.pipeline.report.html.markup import Html, join, tag
from sparring.pipeline.report.html.panel import panel
from sparring.pipeline.report.html.svg import DRAWN, histogram
from sparring.pipeline.report.judging import worth_of_judges

HERE = Path(__file__).parent
SYMBOLS = {"good": "▲", "bad": "▼", "open": "◆", "alarm": "⚠"}
"""What stands before the answer: its tone can be told without its colour."""
SECTIONS = 2_700_000
"""Bytes of all sections together; with what stands above them, style and script the page stays below 3 MB."""
SHARED, FEWEST = 2400, 40
"""Points of the lines of one kind over all arms, and of each line at least."""
OPEN = 8
"""Warnings up to which their box is unfolded."""


def page(stories: Sequence[Story], found: Sequence[Difference] = ()) -> str:
    """Return the document."""
    style, script = (Html((HERE / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    title = "sparring: " + ", ".join(story.name for story in stories)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy(style, script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", style),
    )
    body = tag("body", tag("main", _top(stories, found), *_sections(stories)), tag("script", script))
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def policy(style: str, script: str) -> str:
    """Return the content security policy under which nothing is loaded, and only these two texts are applied."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _top(stories: Sequence[Story], found: Sequence[Difference]) -> Html:
    steps = [m for story in stories for labels in story.every.values() for m in labels.values()]
    made = max((str(m.made_with.get("created", "")) for m in steps), default="")
    named = ("run " if len(stories) == 1 else f"{len(stories)} arms: ") + ", ".join(story.name for story in stories)
    until = f" · last step made {made[:16].replace('T', ' ')} UTC" if made else ""
    return tag(
        "header",
        tag("h1", "Did it get better?"),
        tag("p", named + until, class_="quiet"),
        *_answers(stories),
        differences(found),
        _notes(stories),
    )


def _answers(stories: Sequence[Story]) -> list[Html]:
    if len(stories) > 1:
        return [tag("p", sentence, class_="lead") for sentence in [tables.highest(stories)] if sentence] + [
            tables.arms(stories),
            _warned(stories),
        ]
    told = answer(stories[0].done)
    head = tag(
        "p", tag("span", SYMBOLS[told.tone], aria_hidden="true"), f" {told.headline}", class_=f"answer {told.tone}"
    )
    return [head, *(tag("p", sentence) for sentence in told.sentences), _warned(stories)]


def _warned(stories: Sequence[Story]) -> Html:
    """Return the rules that fired, in a box that is folded where there are many; '' without any."""
    said: dict[str, list[str]] = {}
    for story in stories:
        for one in story.fired:
            said.setdefault(f"iteration {one.iteration}: {one}", []).append(story.name)
    fired = {one.rule for story in stories for one in story.fired}
    rules = [rule for rule in RULES if rule in fired]
    head = tag("summary", tag("span", SYMBOLS["alarm"], aria_hidden="true"), f" Diagnostics warn: {', '.join(rules)}")
    lines = [tag("li", line) for line in _named(said, len(stories))]
    return tag("details", head, tag("ul", *lines), class_="warned", open=len(lines) <= OPEN) if lines else Html("")


def _named(said: Mapping[str, Sequence[str]], arms: int) -> list[str]:
    """Return the lines, each with the arms that it is said of unless it is said of all."""
    return [line if len(names) == arms else f"{', '.join(names)}: {line}" for line, names in said.items()]


def _sections(stories: Sequence[Story]) -> list[Html]:
    """Return the sections; the prompts have the room that the others leave."""
    points = min(DRAWN, max(FEWEST, SHARED // len(stories)))
    each: list[tuple[str, str, Callable[[Story], Html]]] = [
        ("Who beats whom", "no held-out scores yet", games),
        ("Suites", "no suite has judged it yet", tables.suites),
        ("Win rates, similarity, gate", "no pairs yet", _spreads),
        ("Training", "no training yet", partial(curves.training, points=points)),
        ("Band and distance", "no training yet", partial(curves.band, points=points)),
        ("Collapse panel", "no iteration is begun", panel),
        ("Time and cost", "no step is made yet", cost),
        ("Dropped", "no step is made yet", tables.drops),
    ]
    before = [
        _section("Win rate by iteration", "no evaluation yet", curves.win_rates(stories)),
        _section("Length by policy", "no held-out responses yet", curves.lengths(stories)),
        *(_section(name, why, by_arm(stories, drawn)) for name, why, drawn in each),
    ]
    after = [
        _section(
            "All figures",
            "no iteration is begun",
            _folded("The table of the terminal", by_arm(stories, tables.figures)),
        ),
        _section(
            "Lineage",
            "no step is made yet",
            _folded("Artifacts, fingerprints, inputs", by_arm(stories, tables.lineage)),
        ),
        _section("Made with", "no step is made yet", _folded("Versions and hardware", tables.made_with(stories))),
    ]
    room = min(BUDGET, SECTIONS - sum(len(one.encode()) for one in (*before, *after)))
    return [*before, _section("Prompts", "nothing is sampled yet", browser(stories, room)), *after]


def _section(name: str, why: str, inside: Html) -> Html:
    """Return a section, or one line that says why it is left out."""
    if inside:
        return tag("section", tag("h2", name), inside)
    return tag("p", f"{name}: left out, {why}.", class_="absent") if why else Html("")


def _folded(name: str, inside: Html) -> Html:
    return tag("details", tag("summary", name), inside) if inside else inside


def _notes(stories: Sequence[Story]) -> Html:
    """Return what a person should know beside the figures, and what the judges are worth."""
    said: dict[str, list[str]] = {}
    for story in stories:
        for t, notes in story.said.items():
            for line in notes:
                said.setdefault(f"iteration {t}: {line}", []).append(story.name)
    lines = _named(said, len(stories))
    judged = [story.done[t] for story in stories if (t := answer(story.done).t)]
    judges = dict.fromkeys(f"what the judges are worth: {line}" for steps in judged for line in worth_of_judges(steps))
    return tag("ul", *(tag("li", line) for line in [*lines, *judges]), class_="quiet") if lines or judges else Html("")


def _spreads(story: Story) -> Html:
    return join(_spread(story, t) for t in story.done if t in story.spreads)


def _spread(story: Story, t: int) -> Html:
    found, steps = story.spreads[t], story.done[t]
    embed, gate = (steps[label].summary if label in steps else {} for label in ("embed", "calibrate"))
    drawn = [histogram("Win rates p, %", "p", found.rates)]
    if embed.get("similarity"):
        drawn.append(
            histogram("Similarity of two responses, %", "cosine s", _summed("similarity", embed["similarity"]))
        )
    drawn.append(histogram("How clear preferences are, %", "|P − ½|", found.before, found.after))
    if found.after and gate.get("g"):
        drawn.append(histogram("Gate of two responses, %", "g", _summed("gate", gate["g"])))
    name = tag("h3", f"Iteration {t}")
    left = gate.get("strength")
    said = (
        f"The gate leaves {left:.0%} of the targets' distance from ½."
        if found.after and left is not None
        else "No gate."
    )
    return join([name, tag("p", said, class_="quiet"), charts(drawn, "small")])


def _summed(name: str, shape: dict[str, object]) -> Counts:
    return Counts(name=name, low=shape["low"], high=shape["high"], counts=shape["counts"])  # type: ignore[arg-type]
