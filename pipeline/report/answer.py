"""The answer in words: is the new policy better than the base, by whose judgement, and how sure is that?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparring.pipeline.report.judging import apart, left_out
from sparring.pipeline.report.table import Steps, compared, interval

NAMES = {"oracle": "the oracle", "second": "the second judge"}
ORACLE = {
    "better": "Better than the base by the oracle",
    "worse": "Worse than the base by the oracle",
    "open": "The oracle cannot tell it from the base",
    "": "Not judged by the oracle",
}
SECOND = {
    "better": "the second judge calls it better",
    "worse": "the second judge calls it worse",
    "open": "the second judge cannot tell",
    "": "not judged by the second judge",
}
"""What a judge says, by `verdict`."""
OPPONENTS = {"base": "the base", "previous": "the previous policy"}
ALARM = "Alarm: the oracle rises while the second judge falls"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is said of a run."""

    t: int
    """The last iteration that was evaluated; 0 without any."""
    headline: str
    sentences: tuple[str, ...]
    tone: str
    """`good`, `bad`, `open`, or `alarm`: a symbol stands for it, and a colour."""


def verdict(row: Mapping[str, Any] | None) -> str:
    """Return better, worse, open (no difference can be told), or '' where nothing was judged."""
    if row is None or row["win_rate"] is None:
        return ""
    return str(row["finding"]) if row["finding"] in ("better", "worse") else "open"


def answer(done: Mapping[int, Steps]) -> Answer:
    """Return the answer of a run: of its last evaluated iteration, against the base."""
    judged = [t for t, steps in done.items() if "evaluate" in steps]
    if not judged:
        return Answer(t=0, headline="Not evaluated yet", sentences=(), tone="open")
    t = max(judged)
    steps = done[t]
    rows = {judge: compared(steps, judge, "base") for judge in NAMES}
    alarms = steps["evaluate"].summary["alarms"]
    told = {judge: verdict(row) for judge, row in rows.items()}
    plain = headline(told["oracle"], told["second"])
    gamed = [f"The policy may be gaming the oracle. {plain}."] if alarms else []
    sentences = [*gamed, *_sentences(t, steps, rows), *_best(done, t)]
    return Answer(
        t=t,
        headline=f"{ALARM}, against {' and '.join(OPPONENTS[one] for one in alarms)}" if alarms else plain,
        sentences=tuple(sentences),
        tone="alarm" if alarms else tone(told["oracle"], told["second"]),
    )


def headline(oracle: str, second: str) -> str:
    """Return what both verdicts come to."""
    if oracle == second:
        return {
            "better": "Better than the base, by both judges",
            "worse": "Worse than the base, by both judges",
            "open": "Not informative: neither judge can tell it from the base",
            "": "Not judged",
        }[oracle]
    return f"{ORACLE[oracle]}; {SECOND[second]}"


def tone(oracle: str, second: str) -> str:
    """Return good where both judges agree that it is better, bad where one says worse, else open."""
    if "worse" in (oracle, second):
        return "bad"
    return "good" if oracle == second == "better" else "open"


def _sentences(t: int, steps: Steps, rows: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    share = 100 * steps["evaluate"].summary.get("confidence", 0.95)
    said = [_said(t, row, steps) for row in rows.values() if row]
    return [*said, f"{share:.0f}% intervals over held-out prompts, not over seeds."]


def _said(t: int, row: Mapping[str, Any], steps: Steps) -> str:
    judge, why = NAMES[row["judge"]], left_out(steps, row)
    who = f"By {judge}{', which training never saw,' if row['judge'] == 'second' and apart(steps) else ''}"
    if row["win_rate"] is None:
        return f"{judge[0].upper()}{judge[1:]} says nothing, as no held-out prompt is left: left out are {why}."
    small = f"no difference detectable, as it takes more than {row['detectable']:.3f} on so many prompts"
    none = small if row["informative"] else "not informative, as the interval contains ½"
    told = verdict(row).replace("open", none)
    on = f"the mean over {row['n']} prompts{f', with {why} left out' if why else ''}"
    return f"{who} iteration {t} beats the base with probability {interval(row)}, {on}: {told}."


def _best(done: Mapping[int, Steps], last: int) -> list[str]:
    """Say which iteration the second judge puts highest, where it is not the last one."""
    rows = {t: compared(steps, "second", "base") for t, steps in done.items()}
    known = {t: row for t, row in rows.items() if row and row["win_rate"] is not None}
    best = max(known, key=lambda t: float(known[t]["win_rate"]), default=last)
    if best == last:
        return []
    return [f"By the second judge iteration {best} stands highest, by point estimates: {interval(known[best])}."]
