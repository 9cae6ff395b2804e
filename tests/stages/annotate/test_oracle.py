"""The key of a prompt is part of the data format; loading refuses what it does not know."""

import hashlib
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, DataError
from stages.annotate.oracle import load_oracle, prompt_key
from stages.annotate.weights import read_weights

JUDGES = Path(__file__).parents[3] / "stages/annotate/judges"


def test_prompt_key_golden() -> None:
    assert prompt_key([("user", "What is the capital of France?")]) == -3_922_410_945_440_680_592
    assert prompt_key([]) == int.from_bytes(hashlib.sha256(b"").digest()[:8], "big", signed=True)


def test_prompt_key_ignores_case_and_white_space_and_other_turns() -> None:
    plain = prompt_key([("user", "tell me more")])
    assert (
        prompt_key([("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", " Tell\n me  MORE ")])
        == plain
    )
    assert prompt_key([("user", "tell me more"), ("assistant", "prefill")]) == plain
    assert prompt_key([("user", "tell me less")]) != plain


def test_prompt_key_is_signed() -> None:
    keys = [prompt_key([("user", str(k))]) for k in range(64)]
    assert min(keys) < 0 < max(keys)
    assert all(-(2**63) <= key < 2**63 for key in keys)


def test_unknown_kind_names_the_choices() -> None:
    with pytest.raises(ConfigError, match="choose one of: mini, lexical"):
        load_oracle("gpt", JUDGES / "mini", None)


def test_mini_without_encoder_is_refused() -> None:
    with pytest.raises(ConfigError, match="encoder"):
        load_oracle("mini", JUDGES / "mini", None)


def test_missing_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing; point the oracle at a judge folder"):
        load_oracle("lexical", tmp_path, None)


def test_weights_that_are_not_the_cards_are_refused(tmp_path: Path) -> None:
    for name in ("model.safetensors", "card.json"):
        (tmp_path / name).write_bytes((JUDGES / "lexical" / name).read_bytes())
    assert read_weights(tmp_path, ["weight"])[1]
    with (tmp_path / "model.safetensors").open("ab") as handle:
        handle.write(b"\0")
    with pytest.raises(DataError, match="sha256"):
        read_weights(tmp_path, ["weight"])


def test_missing_tensor_is_named() -> None:
    with pytest.raises(DataError, match="no tensor bias"):
        read_weights(JUDGES / "lexical", ["bias"])


def test_judges_never_share_a_training_prompt() -> None:
    mini, lexical = (read_weights(JUDGES / kind, [])[1] for kind in ("mini", "lexical"))
    assert mini
    assert lexical
    assert not mini & lexical
