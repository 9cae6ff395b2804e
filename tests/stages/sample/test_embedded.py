import hashlib
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparring.stages.errors import DataError
from sparring.stages.sample import embedded
from tests.refusals import named, refused

FILES = {"config.json": b"{}", "model.safetensors": b"weights"}


@pytest.fixture
def converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A cache in a temporary folder and a stand-in for the conversion; the list grows with each conversion."""
    calls: list[Path] = []

    def convert(target: Path) -> None:
        calls.append(target)
        for name, content in FILES.items():
            (target / name).write_bytes(content)

    monkeypatch.setenv("SPARRING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "_convert", convert)
    monkeypatch.setattr(
        embedded, "POLICY_FILES", {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    )
    return calls


def test_prepared_once(converted: list[Path]) -> None:
    assert not embedded.is_prepared()
    with refused(DataError, "`python -m sparring.stages.sample.embedded`"):
        embedded.policy_path()
    assert embedded.prepare()[0].startswith("policy smollm2-135m: prepared: ")
    assert embedded.prepare()[0] == f"policy smollm2-135m: {embedded.policy_path()}"
    assert len(converted) == 1
    assert [path.name for path in embedded.place().parent.iterdir() if not path.name.endswith(".lock")] == [
        embedded.POLICY
    ]


def test_a_wrong_cache_is_named_and_redone(converted: list[Path]) -> None:
    embedded.prepare()
    weights = embedded.place() / "model.safetensors"
    weights.write_bytes(b"Weights")
    with refused(DataError, "model.safetensors", "sha256"):
        embedded.policy_path()
    named(embedded.prepare()[0], "redone", "model.safetensors")
    weights.unlink()
    with refused(DataError, "model.safetensors", "missing"):
        embedded.policy_path()
    embedded.prepare()
    (embedded.place() / "extra.bin").write_bytes(b"")
    with refused(DataError, "extra.bin"):
        embedded.policy_path()
    embedded.prepare()
    assert embedded.is_prepared() and len(converted) == 4


def test_a_killed_preparation_leaves_nothing_that_counts(
    converted: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = embedded._convert

    def killed(target: Path) -> None:
        (target / "config.json").write_bytes(b"{}")
        os._exit(9)

    monkeypatch.setattr(embedded, "_convert", killed)
    process = multiprocessing.get_context("fork").Process(target=embedded.prepare)
    process.start()
    process.join()
    left = [path.name for path in embedded.place().parent.glob(".smollm2-135m.tmp-*")]
    assert process.exitcode == 9 and len(left) == 1 and not embedded.is_prepared()
    monkeypatch.setattr(embedded, "_convert", whole)
    embedded.prepare()
    assert embedded.is_prepared() and not list(embedded.place().parent.glob(".smollm2-135m.tmp-*"))


def test_two_at_once_convert_once(converted: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = embedded._convert

    def slow(target: Path) -> None:
        with (tmp_path / "calls").open("a") as calls:
            calls.write("x")
        import time

        time.sleep(0.5)
        whole(target)

    monkeypatch.setattr(embedded, "_convert", slow)
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=embedded.prepare) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert embedded.is_prepared() and (tmp_path / "calls").read_text() == "x"


def test_another_conversion_is_refused(converted: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(embedded.POLICY_FILES, "config.json", "0" * 64)
    with refused(DataError, "config.json", "stages/sample/embedded.py"):
        embedded.prepare()
    assert not embedded.place().exists()


def test_importing_the_stage_is_light() -> None:
    code = (
        "import sys; from sparring.stages import chat;"
        " from sparring.stages.sample import embedded, engine_transformers, engine_vllm, prompts, stage;"
        "print([m for m in ('torch', 'transformers', 'vllm', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_prepared_policy() -> None:
    if not embedded.is_prepared():
        pytest.skip("the embedded policy is not prepared (`make setup` does it)")
    from sparring.stages.chat import check_template, load_tokenizer

    tokenizer = load_tokenizer(embedded.policy_path())
    assert check_template(tokenizer) == []
    assert tokenizer.model_max_length == embedded.CONTEXT
    # Digits are split off before anything else, as in the model's training: the two line breaks are one token.
    assert tokenizer.convert_ids_to_tokens(tokenizer("a:\n\n12  3")["input_ids"]) == [
        "a",
        ":",
        "ĊĊ",
        "1",
        "2",
        "ĠĠ",
        "3",
    ]
    assert (embedded.encoder_folder() / "model.safetensors").is_file()
