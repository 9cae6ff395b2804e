"""The oracle `reward_model`: any transformers sequence-classification model with one label.

    logit(a over b | x) = r(x, a) - r(x, b)

r: the model's logit on the conversation, prompt and response, as its chat template writes it; an encoder without a
chat template reads prompt and response as its two texts (OpenAssistant/reward-model-deberta-v3-large-v2). One score
per response orders them: antisymmetric and transitive by construction, no cycle can be expressed.

A decoder's head reads the last token that is not config.pad_token_id, as transformers' forward of a single row does
(GenericForSequenceClassification of modeling_layers.py), even where the turn ends with that token, because the model
was trained so. Rows are padded on the right with a token that does not change which token that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sparring.stages.annotate import reader
from sparring.stages.annotate.oracle import Duel, Oracle, Verdicts
from sparring.stages.annotate.oracles import OracleContext, OracleOptions
from sparring.stages.annotate.reader import PASS_TOKENS, Conversations, Read, TextPairs, Tokens, batches
from sparring.stages.errors import DataError
from sparring.stages.outline import check_read, outline
from sparring.stages.plain import listed

ENCODERS = (
    "albert",
    "bert",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "modernbert",
    "mpnet",
    "roberta",
    "xlm-roberta",
)
"""model_type of the models that read two texts where they have no chat template."""
KIND = "ForSequenceClassification"


@dataclass(frozen=True, kw_only=True)
class Options(OracleOptions):
    """How a checkpoint is read."""

    needs_transformers_to_check: ClassVar[bool] = True
    cost_unit: ClassVar[str] = "responses"

    dtype: reader.Dtype
    """Of the backbone; the head is in float32."""
    max_tokens: reader.MaxTokens
    """Of prompt and response together; fewer where the model reads fewer."""

    def check_folder(self, folder: Path) -> None:
        from transformers import AutoModelForSequenceClassification

        config = _config(folder)
        _reader(folder, config, self.max_tokens)
        _check_weights(folder, *outline(AutoModelForSequenceClassification, folder, config))


def load(options: Options, context: OracleContext) -> Oracle:
    """Load the folder of a model."""
    return RewardModel(context.folders["judge"], options, context.device)


class RewardModel:
    """A checkpoint on one device. An oracle: no prompt of its training is known."""

    trained_on: frozenset[int] = frozenset()

    def __init__(self, folder: Path, options: Options, device: str = "cpu") -> None:
        from transformers import AutoModelForSequenceClassification

        config = _config(folder)
        self.read = _reader(folder, config, options.max_tokens)
        loaded = reader.load_model(AutoModelForSequenceClassification, folder, config, options.dtype, device)
        _check_weights(folder, *loaded)
        self.model = loaded[0]
        for name, part in self.model.named_children():
            if name != self.model.base_model_prefix:  # all but the backbone is in float32
                part.float().register_forward_pre_hook(lambda _, states: tuple(x.float() for x in states))
        self.text = self.model.config.get_text_config()
        pad = self.text.pad_token_id
        self.pad: int | None = None if pad is None or pad < 0 else pad

    def __call__(self, duels: Sequence[Duel]) -> Verdicts:
        """Return differences of scores; every (prompt, response) is scored once, rows of like length share a pass."""
        texts, places = reader.texts(duels)
        rows = [self.read(*text) for text in texts]
        scores = np.zeros(len(rows))
        for batch in batches([len(row.ids) for row in rows], PASS_TOKENS[self.model.device.type]):
            scores[batch] = self.scores([rows[i] for i in batch])
        return Verdicts(scores[places[:, 0]] - scores[places[:, 1]], reader.truncated(rows, places))

    def scores(self, rows: Sequence[Tokens]) -> np.ndarray:
        """Return the scores (n,) of rows that share a pass, float64."""
        import torch

        pad = self.pad
        if pad is None:  # the head reads the last token that is not pad_token_id: pad with one that ends no row
            last = {row.ids[-1] for row in rows}
            pad = self.text.pad_token_id = next(token for token in count() if token not in last)
        with torch.inference_mode():
            logits = self.model(**reader.padded(rows, pad, self.model.device)).logits
        scores: np.ndarray = logits[:, 0].double().cpu().numpy()
        return scores


def _config(folder: Path) -> Any:
    """Return the folder's configuration; DataError where it is not that of a sequence classifier with one label."""
    config = reader.load_config(folder)
    kinds, labels = config.architectures or [], config.num_labels
    if not any(kind.endswith(KIND) for kind in kinds):
        raise DataError(
            f"{folder / 'config.json'}: architectures is {kinds}; oracle=reward_model reads a model of transformers "
            f"whose name ends with {KIND}, with one label."
        )
    if labels != 1:
        raise DataError(
            f"{folder / 'config.json'}: {labels} labels; oracle=reward_model needs the one score of a reward model: "
            "num_labels 1."
        )
    return config


def _reader(folder: Path, config: Any, most: int) -> Read:
    from sparring.stages.chat import Chat

    tokenizer = reader.load_tokenizer(folder)
    most = reader.longest(config, tokenizer, most)
    if tokenizer.chat_template:
        return Conversations(Chat(tokenizer), most, folder)
    if config.model_type in ENCODERS:
        return TextPairs(tokenizer, most)
    raise DataError(f"{folder}: no chat template; add the chat_template.jinja that the reward model was trained with.")


def _check_weights(folder: Path, model: Any, missing: set[str], unknown: set[str]) -> None:
    if missing:
        instead = f"; it has {listed(unknown)} instead" if unknown else ""
        raise DataError(
            f"{folder}: it lacks {listed(missing)} of a {type(model).__name__}{instead}. A score by weights "
            "that were never trained has no meaning: use the folder of a reward model."
        )
    check_read(folder, model, unknown)
