"""The code that made a step is known: changed code is named, and `--redo` makes its steps again."""

from __future__ import annotations

import ast
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparring.pipeline.planning.plan import Plan, Step, inspect
from sparring.pipeline.planning.redo import other_code, redone
from sparring.pipeline.store import code_digest
from sparring.pipeline.store.code_digest import code_of, differing
from sparring.pipeline.store.manifest import Artifact, publish
from sparring.stages import digests
from sparring.stages.annotate.config import PAIRS, SCORE
from sparring.stages.errors import ConfigError
from sparring.stages.sample.config import SAMPLE
from sparring.stages.train.config import TRAIN
from sparring.stages.train.objectives.sppo import Sppo
from tests import settings
from tests.pipeline.plans import finish, plan_of
from tests.refusals import refused

MINI = settings.score("mini")
OF_SPPO = SimpleNamespace(objective=Sppo(name="sppo", beta=0.001, loss_scale=None))
OF_MINI = settings.score("ensemble", {"a": MINI.oracle}, weights={"a": 1.0})


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of stages/ whose files may be changed."""
    for path in (code_digest.ROOT / "stages").rglob("*.py"):
        copy = tmp_path / path.relative_to(code_digest.ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    monkeypatch.setattr(code_digest, "ROOT", tmp_path)
    monkeypatch.setenv("SPARRING_CACHE", str(tmp_path / "cache"))
    forget()
    return tmp_path / "stages"


def forget() -> None:
    """Forget what was read of files: a test changes one twice within a tick of its clock."""
    code_digest._read.cache_clear()
    digests.save(code_digest.CACHE, {})


def change(path: Path, old: str, new: str) -> None:
    """Replace `old` at the first place inside a block where that makes other code."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for at, line in enumerate(lines):
        changed = "".join([*lines[:at], line.replace(old, new, 1), *lines[at + 1 :]])
        if line.startswith(" ") and old in line and _other_code(changed, "".join(lines)):
            path.write_text(changed, encoding="utf-8")
            forget()
            return
    raise AssertionError(f"{path}: no {old!r}")


def _other_code(changed: str, before: str) -> bool:
    """Whether both compile, to different code; docstrings are no code."""
    try:
        return _without_texts(changed) != _without_texts(before)
    except SyntaxError:
        return False


def _without_texts(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        for line in getattr(node, "body", None) or [] if not isinstance(node, ast.Lambda | ast.IfExp) else []:
            if isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant):
                line.value.value = ""
    return ast.dump(tree)


@pytest.mark.parametrize(
    ("spec", "chosen", "file", "old", "new"),
    [
        (SCORE, MINI, "annotate/oracles/mini.py", " - ", " + "),
        (SCORE, OF_MINI, "annotate/oracles/mini.py", " - ", " + "),
        (PAIRS, None, "annotate/winrate.py", " / ", " * "),
        (TRAIN, OF_SPPO, "train/objectives/sppo.py", " * ", " + "),
        (TRAIN, OF_SPPO, "train/batch/collate.py", " + ", " - "),  # imported inside functions alone
    ],
)
def test_a_change_of_what_computes_shows(code: Path, spec: Any, chosen: Any, file: str, old: str, new: str) -> None:
    """`chosen`: the settings, which name the modules of a step that has `modules`; no other step reads them."""
    before = code_of(spec, chosen)
    change(code / file, old, new)
    assert differing(before, code_of(spec, chosen)) == {f"stages/{file}"}


def test_comments_docstrings_and_formatting_do_not(code: Path) -> None:
    before = code_of(SCORE, MINI)
    path = code / "annotate" / "oracles" / "mini.py"
    _, _, rest = path.read_text().split('"""', 2)
    path.write_text('"""Another docstring."""\n\n# a comment\n' + rest.replace("\n\n\n", "\n\n\n\n\n"))
    forget()
    assert differing(before, code_of(SCORE, MINI)) == set()


def test_code_that_the_step_does_not_take_does_not(code: Path) -> None:
    before = code_of(SCORE, MINI)
    assert "stages/annotate/oracles/gpm.py" not in before and "stages/train/objectives/base.py" not in before
    change(code / "annotate" / "oracles" / "gpm.py", "return ", "return not ")
    assert differing(before, code_of(SCORE, MINI)) == set()
    trained = code_of(TRAIN, OF_SPPO)
    change(code / "train" / "objectives" / "dpo.py", " * ", " + ")
    assert differing(trained, code_of(TRAIN, OF_SPPO)) == set()


def test_code_that_computes_no_result_does_not() -> None:
    modules = code_of(TRAIN, OF_SPPO)
    assert "stages/train/config.py" in modules and "stages/hardware.py" not in modules


def test_a_plan_names_the_steps_of_other_code(tmp_path: Path) -> None:
    plan, steps = made(tmp_path)
    assert other_code(plan, inspect(plan, tmp_path)) is None  # older versions did not say what made a step
    step = steps["pairs"]
    now = code_of(step.spec, step.settings)
    remake(tmp_path, step, now)
    assert other_code(plan, inspect(plan, tmp_path)) is None
    remake(tmp_path, step, {**now, "stages/annotate/winrate.py": "0" * 16})
    found = other_code(plan, inspect(plan, tmp_path))
    assert found and found.files == {"pairs": {"stages/annotate/winrate.py"}}
    assert (found.steps, found.of) == (1, len(plan.steps))
    assert str(found).count("stages/annotate/winrate.py") == 1 and "--redo pairs" in str(found)
    assert "\n" not in str(found)


def test_redo_makes_a_step_and_what_follows_stale(tmp_path: Path) -> None:
    plan, _ = made(tmp_path)
    redo = redone(plan, ["pairs"])
    states = {plan.steps[name].spec.kind: state.kind for name, state in inspect(plan, tmp_path, redo).items()}
    assert (states["embed"], states["pairs"], states["calibrate"], states["train"]) == (
        "hit",
        "stale",
        "stale",
        "stale",
    )
    assert redone(plan, []) == frozenset()
    assert redone(plan, ["score_oracle_previous"]) < redone(plan, ["score"])
    with refused(ConfigError, "--redo scores", "score"):
        redone(plan, ["scores"])


def test_a_stale_artifact_stands_until_its_successor_is_published(tmp_path: Path) -> None:
    _, steps = made(tmp_path)
    step = steps["pairs"]
    artifact = Artifact(tmp_path, "pairs", step.fingerprint)
    stale, old = artifact.raw(), artifact.manifest()
    assert old is not None
    first = publish(artifact, replace(old, attempts=["bbbb"]), stale)
    second = publish(artifact, replace(old, attempts=["cccc"]), stale)  # another driver, which was later
    assert first.attempts == second.attempts == ["bbbb"]


def test_a_successor_that_a_kill_kept_from_its_place_takes_it_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, steps = made(tmp_path)
    artifact = Artifact(tmp_path, "pairs", steps["pairs"].fingerprint)
    stale, old = artifact.raw(), artifact.manifest()
    assert old is not None

    def killed(temporary: Any, name: Any) -> None:
        if Path(name).name == "manifest.json":
            raise KeyboardInterrupt
        rename(temporary, name)

    rename = os.replace
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        publish(artifact, replace(old, attempts=["bbbb"]), stale)
    assert artifact.raw() == stale  # at every moment there is one or the other
    assert publish(artifact, replace(old, attempts=["cccc"]), stale).attempts == ["bbbb"]
    others = replace(old, attempts=["dddd"], inputs={})
    assert publish(artifact, others, artifact.raw()).attempts == ["dddd"]


def test_a_stale_artifact_that_is_gone_leaves_its_place_free(tmp_path: Path) -> None:
    _, steps = made(tmp_path)
    artifact = Artifact(tmp_path, "pairs", steps["pairs"].fingerprint)
    stale, old = artifact.raw(), artifact.manifest()
    assert old is not None
    (artifact.path / "manifest.json").unlink()
    assert publish(artifact, replace(old, attempts=["bbbb"]), stale).attempts == ["bbbb"]


def test_what_the_cache_knows_of_a_file_is_of_the_file_as_it_is(code: Path) -> None:
    before = code_of(SCORE, MINI)
    code_digest._read.cache_clear()
    assert code_of(SCORE, MINI) == before  # from the cache
    digests.save(code_digest.CACHE, {str(code / "annotate" / "score.py"): [1], str(code / "annotate" / "rows.py"): {}})
    code_digest._read.cache_clear()
    assert code_of(SCORE, MINI) == before


@pytest.mark.parametrize("engine", ["vllm", "transformers", "server"])
def test_a_sample_is_of_the_code_of_its_own_engine(engine: str) -> None:
    files = code_of(SAMPLE, settings.sample(engine))
    engines = {f"stages/sample/engine_{name}.py" for name in ("vllm", "transformers", "server")}
    assert engines & set(files) == {f"stages/sample/engine_{engine}.py"}


def made(store: Path) -> tuple[Plan, dict[str, Step]]:
    """A plan of which every step is made."""
    plan = plan_of()
    for step in plan.steps.values():
        finish(plan, step, store)
    return plan, {step.spec.kind: step for step in reversed(plan.steps.values())}


def remake(store: Path, step: Step, modules: dict[str, str]) -> None:
    artifact = Artifact(store, step.spec.kind, step.fingerprint)
    manifest = artifact.manifest()
    assert manifest is not None
    publish(artifact, replace(manifest, made_with={"modules": modules}), artifact.raw())
