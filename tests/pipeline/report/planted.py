"""What a hostile model or user may write, planted wherever a text reaches the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparring.pipeline.suites import results
from sparring.pipeline.suites.results import About, Overlap, Result, Score
from tests.pipeline.report.fabricated import Played, Run, duel, samples_table

RUNS = "document.documentElement.dataset.planted='ran'"
"""Would leave an attribute on the page's root."""
TEXTS = (
    f"<script>{RUNS}</script>",
    f"</pre></details></script><script>{RUNS}</script><!--",
    f'<img src=x onerror="{RUNS}">',
    f"\"'><svg onload={RUNS}>",
    "\x1b[31mred\x1b[0m \u202egnp.exe\u202c \u2066hidden\u2069 \u2028 \u2029 \x00 end",
    "<style>body{display:none}</style><base href=//evil.example><a href='javascript:0'>x</a>",
)
NAME = "<img src=x onerror=alert(1)>'\"&"
OTHER = f'"><svg onload={RUNS}>\x1b[31m{"W" * 60}'


def planted(root: Path, name: str = NAME, more: float = 0.0) -> Run:
    """A finished run with hostile texts in prompts, responses, drop reasons and its name; three iterations.

    more: what the oracle adds to its win rates on one of two held-out prompts.
    """
    run = Run(root, name).begin()
    run.add(0, "prompts", dropped={"<b>over</b>": 2})
    run.add(0, "sample_base", [samples_table({"h": duel("Held out.", "a", "b", 0.5)})], summary={"length_mean": 80.0})
    p = duel("", "", "", 0.8).p
    hostile = {f"{i}": Played(text, (text, "W" * 3000), p) for i, text in enumerate(TEXTS)}
    plain = {f"plain{i}": duel(f"Question {i}?", "yes", "no", 0.5 + i / 50) for i in range(6)}
    for t in (1, 2, 3):
        run.annotated(t, [hostile, plain])
        run.trained(t)
        oracle, second = 0.52 + t / 50, 0.5 + t / 100
        run.evaluated(t, {"h0": oracle, "h1": oracle + more}, {"h0": second, "h1": second})
    run.crossplayed(3)
    for number, text in enumerate(TEXTS):
        named: dict[str, Any] = {
            "suite": text,
            "judge": text,
            "model": text,
            "notes": [text],
            "scores": {text: Score(value=1.0)},
        }
        results.write(
            run.folder / "answers", f"judged-{number}", Result(**named, about=About(iteration=0, policy=None))
        )
        overlap = Overlap(suite=text, n=13, rows=8, overlapping=1, prompts=6, of=text)
        results.write_overlaps(run.folder / "answers", [overlap])
    return run
