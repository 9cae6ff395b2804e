"""`diagnostics.stop_on`: an arm in which one of these rules fires makes no further iteration.

The iteration is finished, other arms of a multirun go on, and the run ends with a RuleFired that names every arm that
was stopped. After the last iteration there is nothing to stop: a rule that fires there only warns.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sparring.pipeline.planning.plan import Plan, Step
from sparring.pipeline.runs.panel import panels
from sparring.pipeline.runs.rules import RuleWarning, fired
from sparring.pipeline.runs.run_history import RunHistory
from sparring.stages.errors import RuleFired


class Watch:
    """Applies the rules to each iteration of each arm when it is evaluated."""

    def __init__(self, plan: Plan, run: Path, store: Path, message: Callable[[str], None]) -> None:
        self.plan, self.run, self.store, self.message = plan, run, store, message
        self.stopped: dict[str, list[RuleWarning]] = {}
        """arm -> the rules that stopped it, all of one iteration."""

    def wanted(self, step: Step) -> bool:
        """Return whether an arm that goes on uses the step; what it reads is then wanted too."""
        last = {arm: rules[0].iteration for arm, rules in self.stopped.items()}
        return any(use.arm not in last or use.iteration <= last[use.arm] for use in step.uses)

    def check(self, step: Step) -> None:
        """Report the rules that fire in the iterations that `step` evaluates, which the records already have."""
        for use in step.uses if step.spec.kind == "evaluate" else ():
            if use.arm in self.stopped:
                continue
            config = self.plan.configs[use.arm].diagnostics
            made = RunHistory.at(self.run / use.arm).steps
            history = panels({t: steps for t, steps in made.items() if t <= use.iteration}, self.store)
            warnings = fired(history, config)
            for one in warnings:
                self.message(f"{_place(use.arm, use.iteration)}: WARNING {one}")
            stopping = [one for one in warnings if one.rule in config.stop_on]
            if stopping and any(later.iteration > use.iteration for later, _ in self.plan.arm(use.arm)):
                self.stopped[use.arm] = stopping

    def end(self) -> None:
        """Raise RuleFired where an arm was stopped."""
        if not self.stopped:
            return
        why = ". ".join(
            f"{_place(arm, rules[0].iteration)}: {'; '.join(map(str, rules))}" for arm, rules in self.stopped.items()
        )
        keys = " or ".join(dict.fromkeys(f"diagnostics.{one.rule}" for rules in self.stopped.values() for one in rules))
        others = len(self.plan.configs) - len(self.stopped)
        went_on = f" The other {others} of {len(self.plan.configs)} arms are finished." if others else ""
        raise RuleFired(
            f"stopped by diagnostics.stop_on. {why}. All that was made is kept.{went_on} Look at `sparring report "
            f"{self.run.name}`; to go on, change {keys}, or run the same command with diagnostics.stop_on=[]."
        )


def _place(arm: str, iteration: int) -> str:
    return f"{arm}, iteration {iteration}" if arm else f"iteration {iteration}"
