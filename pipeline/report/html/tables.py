"""The tables of a report: arms beside each other, drops, lineage, what it was made with, and every figure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from sparring.pipeline.report.answer import answer
from sparring.pipeline.report.html.gather import Story
from sparring.pipeline.report.html.markup import Html, join, table, tag
from sparring.pipeline.report.published import NAMES
from sparring.pipeline.report.table import compared, interval, rows_of, win_rate
from sparring.pipeline.store.manifest import Manifest


def arms(stories: Sequence[Story]) -> Html:
    """Return the arms beside each other: their last evaluated iteration against the base."""
    heads = ("arm", "last evaluated", "oracle: vs base", "second judge: vs base", "tokens, mean", "in words")
    return table(heads, [_arm(story) for story in stories], "arms")


def _arm(story: Story) -> list[str]:
    told = answer(story.done)
    steps = story.done.get(told.t, {})
    rows = [compared(steps, judge, "base") for judge in ("oracle", "second")]
    length = steps["sample_heldout"].summary.get("length_mean") if "sample_heldout" in steps else None
    cells = [win_rate(row) if row else "" for row in rows]
    return [
        story.name,
        f"iteration {told.t}" if told.t else "",
        *cells,
        "" if length is None else f"{length:.1f}",
        told.headline,
    ]


def highest(stories: Sequence[Story]) -> str:
    """Return which arm the second judge puts highest, and how many intervals reach into its own; '' without any."""
    last = {story.name: answer(story.done).t for story in stories}
    rows = {story.name: compared(story.done.get(last[story.name], {}), "second", "base") for story in stories}
    found = {name: row for name, row in rows.items() if row and row["win_rate"] is not None}
    if not found:
        return ""
    best = max(found, key=lambda name: float(found[name]["win_rate"]))
    others = [row for name, row in found.items() if name != best]
    at = f"at iteration {last[best]}: {interval(found[best])}."
    stands = f"By the second judge {best} stands highest by point estimate, {at}"
    return stands + _overlap(sum(row["high"] >= found[best]["low"] for row in others), len(others))


def _overlap(reach: int, others: int) -> str:
    if others < 2:
        return (
            f" The interval of the other one {'overlaps' if reach else 'does not overlap'} with it." if others else ""
        )
    return f" Intervals that overlap with it: {reach} of the {others} others'."


def drops(story: Story) -> Html:
    """Return rows that steps took in and did not give out, by reason; one line where nothing was dropped."""
    rows = [
        [label, str(t), f"{m.rows['in']:,}", f"{m.rows['out']:,}", reason, f"{count:,}"]
        for t, label, m in steps_of(story)
        for reason, count in sorted(m.rows["dropped"].items())
    ]
    if not rows:
        return (
            tag("p", "Nothing was dropped: every step gave out as many rows as it took in.")
            if story.every
            else Html("")
        )
    return table(("step", "iteration", "rows in", "rows out", "reason", "dropped"), rows, "numbers drops")


def lineage(story: Story) -> Html:
    """Return every artifact with its fingerprint and what it was made of."""
    rows = [
        [f"{label}, {t}", tag("code", m.fingerprint), _inputs(m), str(m.version), str(m.made_with.get("created", ""))]
        for t, label, m in steps_of(story)
    ]
    return (
        table(("step, iteration", "fingerprint", "made of", "version", "made"), rows, "lineage") if rows else Html("")
    )


def _inputs(manifest: Manifest) -> Html:
    given = [join([role, " ", tag("code", entry["name"][:8])]) for role, entry in sorted(manifest.inputs.items())]
    return join(part for one in given for part in (one, tag("br")))


def made_with(stories: Sequence[Story]) -> Html:
    """Return code, packages and hardware; those that differ between steps stand one under the other."""
    kinds: dict[str, dict[str, set[str]]] = {"code": {}, "packages": {}, "hardware": {}}
    for story in stories:
        for _, _, manifest in steps_of(story):
            for kind, found in kinds.items():
                for name, value in (manifest.made_with.get(kind) or {}).items():
                    found.setdefault(name, set()).add(value if isinstance(value, str) else json.dumps(value))
    rows = [
        [name, kind, join(part for value in sorted(values) for part in (value, tag("br")))]
        for kind, found in kinds.items()
        for name, values in found.items()
    ]
    return table(("name", "kind", "value"), rows) if rows else Html("")


def suites(story: Story) -> Html:
    """Return what suites found beside what was published, and what the training prompts share with suites."""
    found = story.suites
    if not found:
        return Html("")
    heads = ("", *(NAMES.get(t, f"iteration {t}") for t in found.columns))
    rows = [[name, *(cells.get(t, "") for t in found.columns)] for name, cells in found.rows.items()]
    shared = [
        [one.suite, str(one.n), f"{one.rows:,}", f"{one.overlapping:,}", f"{one.prompts:,} {one.of}"]
        for one in found.overlaps
    ]
    return join(
        [
            table(heads, rows, "numbers") if rows else Html(""),
            tag("ul", *(tag("li", line) for line in found.notes), class_="quiet") if found.notes else Html(""),
            table(("suite", "words in a row", "rows", "in training prompts too", "training prompts"), shared, "numbers")
            if shared
            else Html(""),
        ]
    )


def figures(story: Story) -> Html:
    """Return the table that the terminal shows."""
    rows = [[name, *cells] for name, cells in rows_of(story.done, story.panels)]
    return table(("iteration", *map(str, story.done)), rows, "numbers") if rows else Html("")


def steps_of(story: Story) -> Iterator[tuple[int, str, Manifest]]:
    """Yield (iteration, label, manifest); of an artifact with two labels the first one."""
    seen = set()
    for t, steps in story.every.items():
        for label, manifest in steps.items():
            if manifest.fingerprint not in seen:
                yield t, label, manifest
            seen.add(manifest.fingerprint)
