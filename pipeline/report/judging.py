"""What the judges of a run are worth, and what each of them leaves out, from the manifests of an iteration alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sparring.pipeline.store.manifest import Manifest
from sparring.stages.annotate.fitness import interval

JUDGES = {"oracle": "oracle", "second": "second judge"}
"""Judge -> its name in tables; `score_<judge>_<opponent>` is how it judged the new policy."""
OPPONENTS = {"base": "the base", "previous": "the previous policy"}
CHECKED_BY = {"oracle": "oracle=", "second": "--judge judge="}
"""Judge -> the option of `sparring oracle check` that names its kind."""
CORRELATION = ("error_phi", "error_phi_low", "error_phi_high")
"""Of a judge's card: how its mistakes correlate with those of the other judge that was measured beside it."""


def win_rate_name(judge: str, opponent: str) -> str:
    """Return the name of a win rate among the figures: `second judge: vs base`."""
    return f"{JUDGES[judge]}: vs {opponent}"


def worth_of_judges(steps: Mapping[str, Manifest]) -> list[str]:
    """Return what stands beside every win rate: the judges' accuracy, and how their mistakes correlate."""
    scores = {judge: steps[label].summary for judge in JUDGES if (label := f"score_{judge}_base") in steps}
    lines = []
    for judge, score in ((judge, score) for judge, score in scores.items() if "oracle" in score):
        card, who = score.get("card"), f"{JUDGES[judge]} ({score['oracle']})"
        if card:
            lines += [f"{who}{', ' if line.startswith('by source') else ': '}{line}" for line in accuracy_of(card)]
        else:
            command = f"sparring oracle check FILE {CHECKED_BY[judge]}{score['oracle']}"
            lines.append(f"{who}: accuracy not measured; `{command}` does, on labelled pairs")
    if not are_independent(steps):
        lines.append("the second judge is the oracle, or a part of it: it says nothing that the oracle does not")
    # A card does not name the other judge. But it is one measurement of two judges, written into the cards of both:
    # cards that state the same one are of the two that were measured beside each other.
    cards = [score.get("card") or {} for score in scores.values()]
    stated = [[card.get(name) for name in CORRELATION] for card in cards]
    if len(stated) == 2 and stated[0] == stated[1] and None not in stated[0]:
        lines.append(f"the judges' mistakes correlate: {interval(cards[0], 'error_phi')}")
    return lines


def are_independent(steps: Mapping[str, Manifest]) -> bool:
    """Whether the second judge was loaded from no folder of the oracle. A plan refuses it; older runs may have one."""
    scores = [steps[label] for judge in JUDGES if (label := f"score_{judge}_base") in steps]
    loaded = [{i["digest"] for role, i in m.inputs.items() if role.split(".")[-1] == "judge"} for m in scores]
    return len(loaded) < 2 or not loaded[0] & loaded[1]


def left_out(steps: Mapping[str, Manifest], row: Mapping[str, Any]) -> str:
    """Return why held-out prompts are left out of a row of `evaluate`; '' where none is.

    `3 on which it was trained, 1 that the base did not answer`: two counts, of which the row has the sum.
    """
    dropped, score = row.get("dropped") or 0, steps.get(f"score_{row['judge']}_{row['opponent']}")
    if not dropped or score is None or "trained_on" not in score.summary:
        return f"{dropped}" if dropped else ""
    trained = score.summary["trained_on"]
    other = OPPONENTS[row["opponent"]]
    counts = {"on which it was trained": trained, f"that {other} did not answer": dropped - trained}
    return ", ".join(f"{count} {why}" for why, count in counts.items() if count)


def accuracy_of(card: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a judge's card states of its accuracy: over sources, beside the rules of length, then by source."""

    def rules(prefix: str, suffix: str) -> str:
        """Return the accuracy of the two rules of length on the same pairs."""
        return ", ".join(f"'{rule} wins' {card[f'{prefix}{rule}_wins{suffix}']:.3f}" for rule in ("shorter", "longer"))

    if "macro" not in card:  # a card of another make
        names = {"accuracy": "accuracy of all its test pairs", "length_matched": "length-matched"}
        yield ", ".join(f"{text} {interval(card, name)}" for name, text in names.items() if name in card)
        return
    parts = [
        f"accuracy {interval(card, 'macro')}, the mean over {len(card['sources'])} sources, on held-out prompts of "
        f"sources like those it was trained on ({rules('macro_', '')})"
    ]
    if card["few_prompts"]:
        few = ", ".join(f"{name} ({card['sources'][name]['prompts']} prompts)" for name in card["few_prompts"])
        parts.append(
            f"without {few} {interval(card, 'macro_many_prompts')} ({rules('macro_', '_many_prompts')}), of all "
            f"pairs {interval(card, 'accuracy_many_prompts')} ({rules('', '_many_prompts')})"
        )
    if "length_matched" in card:
        parts.append(f"length-matched {interval(card, 'length_matched')} ({rules('', '_length_matched')})")
    yield "; ".join(parts)
    by_source = (f"{name} {one['accuracy']:.3f} of {one['pairs']:,} pairs" for name, one in card["sources"].items())
    yield f"by source: {', '.join(by_source)}"
