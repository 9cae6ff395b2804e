"""AlpacaEval through its own package (`pip install alpaca_eval`): annotating, and the win rates of annotations.

The package is imported when it is needed. What it would fetch by itself (the baseline's outputs, df_gamed.csv) is given
to it as files, so that one message names what is missing, and its caches lie beside the outputs, not inside it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.stages.errors import ConfigError, DataError, first_line

Record = dict[str, Any]
DEFAULT_ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
"""The leaderboard's."""
GAMED_COLUMNS = ("preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline", "model")


@dataclass(frozen=True, kw_only=True)
class Annotator:
    """Who is asked which of two outputs is better."""

    config: str
    """One of the package's, or a yaml, or a folder with configs.yaml."""
    base_url: str | None
    """An OpenAI-compatible server in place of the API, such as vLLM's: http://host:8000/v1."""
    model: str | None
    """What to ask there; None: the model of the config."""


def annotate(
    reference: Sequence[Record], outputs: Sequence[Record], annotator: Annotator, beside: Path
) -> list[Record]:
    """Ask the annotator about every row; the answers it has given lie in a cache in the folder `beside`.

    Rows without a preference are asked again the next time. Order and number are those that the package returns.
    """
    import pandas as pd
    from alpaca_eval.annotators import PairwiseAnnotator

    settings = resolved(annotator)
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    cache = beside / f".{named(annotator.config)}-{key}.json"
    drop_unanswered(cache)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = Path(scratch) / named(annotator.config) / "configs.yaml"
        config.parent.mkdir()
        config.write_text(json.dumps(settings), encoding="utf-8")  # which is YAML
        try:
            judge = PairwiseAnnotator(annotators_config=config, caching_path=cache)
            annotations: list[Record] = judge.annotate_head2head(pd.DataFrame(reference), pd.DataFrame(outputs))
        except Exception as error:  # of the package, of an API, of a server
            raise DataError(
                f"annotator {annotator.config}: {type(error).__name__}: {first_line(error)!r}. Check its key "
                "(OPENAI_API_KEY), or its server (--base-url), then run again: what it has answered is kept."
            ) from None
    return annotations


def drop_unanswered(cache: Path) -> None:
    """Drop the rows without a preference (-1) from the package's cache, which would keep them. DataError if damaged."""
    if not cache.is_file():
        return
    try:
        answered = [row for row in json.loads(cache.read_text(encoding="utf-8")) if row["preference"] != -1]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{cache}: the cache of the annotator's answers is damaged ({error}); remove the file, then run again: "
            "every row is asked about again."
        ) from None
    temporary = cache.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(answered), encoding="utf-8")
    temporary.replace(cache)


def resolved(annotator: Annotator) -> dict[str, dict[str, Any]]:
    """Return the annotators of a configuration, with absolute paths of templates and `base_url`, if there is one."""
    import yaml

    path = _config(annotator.config)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        settings = {str(name): dict(one) for name, one in content.items()}
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ConfigError(f"--annotator {path}: no configuration of annotators ({first_line(error)}).") from None
    for one in settings.values():
        one["prompt_template"] = _template(str(one.get("prompt_template", "")), path)
        asks = one["completions_kwargs"] = dict(one.get("completions_kwargs") or {})
        if annotator.model:
            asks["model_name"] = annotator.model
        if annotator.base_url:
            asks |= {"openai_api_base": annotator.base_url, "requires_chatml": True, "price_per_token": 0.0}
            asks |= {"client_config_path": "/dev/null/none", "openai_api_keys": "none"}
    return settings


def _config(name: str) -> Path:
    from alpaca_eval import constants

    ours = Path(os.path.expanduser(name))
    for path in (ours, constants.EVALUATORS_CONFIG_DIR / name):
        if path.is_dir():
            path = path / "configs.yaml"
        if path.is_file():
            return path.absolute()
    raise ConfigError(
        f"--annotator {name}: neither a yaml, nor a folder with configs.yaml, nor one of the package's "
        f"({constants.EVALUATORS_CONFIG_DIR})."
    )


def _template(template: str, config: Path) -> str:
    """Return the path of a prompt template, which stands relative to its config's folders or the package's."""
    from alpaca_eval import constants

    for folder in (config.parents[1], config.parent, constants.EVALUATORS_CONFIG_DIR):
        if template and (folder / template).is_file():
            return str((folder / template).absolute())
    if "{instruction}" in template:
        return template  # the text itself
    raise ConfigError(f"{config}: prompt_template {template} is no file beside it, nor one of the package's.")


def named(config: str) -> str:
    """Return the name of an annotator's configuration."""
    path = Path(config)
    return path.parent.name if path.name == "configs.yaml" else path.stem


def win_rate(annotations: Sequence[Record]) -> dict[str, float]:
    """Return the package's raw figures: win_rate, standard_error, n_wins, n_draws, … in points of 100."""
    import pandas as pd
    from alpaca_eval.metrics import get_winrate

    return _plain(get_winrate(pd.DataFrame(annotations)))


def length_controlled(annotations: Sequence[Record], gamed: Path) -> dict[str, float]:
    """Return the package's length_controlled_winrate and lc_standard_error; annotations in the suite's order.

    gamed: df_gamed.csv of the suite, which regularises the fit and holds the difficulty of the instructions.
    """
    import pandas as pd
    from alpaca_eval.metrics import glm_winrate

    _check_gamed(gamed, len(annotations))
    columns = ("instruction", "output_1", "output_2", "generator_1", "generator_2", "preference")
    table = pd.DataFrame([{name: row[name] for name in columns} for row in annotations])
    fetch, glm_winrate.hf_hub_download = glm_winrate.hf_hub_download, lambda **_: str(gamed)  # read, not downloaded
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = glm_winrate.get_length_controlled_winrate(table, save_weights_dir=None, is_warn_extreme_changes=False)
    finally:
        glm_winrate.hf_hub_download = fetch
    return _plain({name: fit[name] for name in ("length_controlled_winrate", "lc_standard_error")})


def _check_gamed(path: Path, rows: int) -> None:
    """DataError when the file is not what the fit needs."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            missing = [name for name in GAMED_COLUMNS if name not in (table.fieldnames or [])]
            indices = {int(float(row["index"])) for row in table} if not missing else set()
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable table ({error}); get df_gamed.csv again.") from None
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}; give df_gamed.csv of the suite.")
    absent = next((row for row in range(rows) if row not in indices), None)
    if absent is not None:
        raise DataError(f"{path}: has no index {absent}, of {rows} instructions; give df_gamed.csv of the suite.")


def _plain(figures: dict[str, Any]) -> dict[str, float]:
    return {name: value.item() if hasattr(value, "item") else value for name, value in figures.items()}
