"""Suites of others that a policy is evaluated with. Nothing of a suite is shipped or trained on.

A suite is a file of this package with a `SUITE`: where its questions are, how a policy answers them and who judges the
answers. Its name is the file's.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from sparring.pipeline.suites.base import Suite
from sparring.stages.errors import ConfigError


@cache
def suites() -> dict[str, Suite]:
    """Return the suites by name."""
    modules = {file.name: import_module(f"{__name__}.{file.name}") for file in iter_modules(__path__)}
    return {name: module.SUITE for name, module in modules.items() if hasattr(module, "SUITE")}


def to_answer() -> dict[str, Suite]:
    """Return the suites that `sparring answer` knows."""
    return {name: suite for name, suite in suites().items() if suite.questions}


def to_judge(name: str) -> Suite:
    """Return a suite that `sparring judge` knows; ConfigError names them."""
    known = {name: suite for name, suite in suites().items() if suite.judge}
    if name not in known:
        raise ConfigError(f"{name}: no suite of that name; there are: {', '.join(known)}.")
    return known[name]
