"""sentence-transformers as judge: ``SentenceTransformer(folder).encode(text)``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deploykit.judge import Choices, Library, NotJudged, Raw

NAME = "sentence-transformers"
_POOLINGS = {
    "mean": "mean",
    "cls": "cls",
    "max": "max",
    "last": "lasttoken",
    "mean_sqrt_len": "mean_sqrt_len_tokens",
    "weighted_mean": "weightedmean",
}
"""The library's words for the poolings that can be asked for."""
_UNBOUNDED = 10**6  # transformers writes 1e30 for "no maximum"


def open(location: str, choices: Choices) -> Library:
    """Load the folder, and apply what was asked for by the means of the library."""
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        location,
        device="cpu",
        local_files_only=True,
        trust_remote_code=choices.trust_remote_code,
        model_kwargs={"dtype": torch.float32},
    )
    return _Encoder(*_overridden(model, choices))


class _Encoder:
    """See `Library`; ``options`` go to every ``encode``."""

    name = NAME

    def __init__(self, model: Any, options: dict[str, Any], overridden: tuple[str, ...]) -> None:
        import sentence_transformers

        self._model, self._options = model, options
        self.version = str(sentence_transformers.__version__)
        given = "".join(f", {key}={value!r}" for key, value in options.items())
        self.call = f"SentenceTransformer(folder).encode(text{given})"
        self.overridden = overridden
        self.prompts: Mapping[str, str] = dict(model.prompts)

    def encode(self, raw: Raw) -> np.ndarray:
        vectors = self._encode(raw, **self._options)
        return np.asarray(vectors[0], np.float64)

    def decoded(self, raw: Raw) -> np.ndarray | None:
        if isinstance(raw.value, str):
            return None
        from transformers.image_utils import load_image  # as the library opens a path

        return np.asarray(load_image(str(raw.value)))

    def tensors(self, raw: Raw) -> dict[str, np.ndarray]:
        name = raw.prompt if raw.prompt is not None else self._model.default_prompt_name
        prompt = self.prompts[name] if name is not None else ""
        if hasattr(self._model, "preprocess"):
            features = self._model.preprocess([str(raw.value)], prompt=prompt or None)
        else:
            features = self._model.tokenize([prompt + str(raw.value)])
        return {name: np.asarray(found) for name, found in features.items() if hasattr(found, "shape")}

    def hidden(self, raw: Raw) -> np.ndarray | None:
        task = {key: value for key, value in self._options.items() if key == "task"}
        tokens = self._encode(raw, output_value="token_embeddings", **task)[0]
        return np.asarray(tokens.cpu().float())[None]

    def _encode(self, raw: Raw, **options: Any) -> Any:
        named = {} if raw.prompt is None else {"prompt_name": raw.prompt}
        return self._model.encode([str(raw.value)], batch_size=1, show_progress_bar=False, **named, **options)


def _takes_limit(model: Any, tokens: int) -> bool:
    """Whether ``tokens`` can be set as the longest text: a table of words (StaticEmbedding) reads all of a text."""
    try:
        model.max_seq_length = tokens
    except AttributeError:
        return False
    return True


def _overridden(model: Any, choices: Choices) -> tuple[Any, dict[str, Any], tuple[str, ...]]:
    """The model, the options of ``encode`` and a word for each thing that is not as the folder says."""
    model, said = _chain(model, choices)
    if choices.prompts:
        model.prompts = {**model.prompts, **choices.prompts}
        said.append("prompts")
    longest = model.max_seq_length
    if choices.max_length is not None:
        model.max_seq_length = choices.max_length
        said.append(f"max_length {choices.max_length}")
    elif choices.fixed_length is not None:
        model.max_seq_length = choices.fixed_length
        said.append(f"fixed_length {choices.fixed_length}")
    elif (longest is None or longest > _UNBOUNDED) and choices.longest and _takes_limit(model, choices.longest):
        said.append(f"max_length {choices.longest}, as the folder names none")
    options: dict[str, Any] = {}
    if choices.route is not None:
        options["task"] = choices.route
        said.append(f"route {choices.route}")
    if choices.dim is not None:
        options["truncate_dim"] = choices.dim
        said.append(f"dim {choices.dim}")
    # Cut, a normalized vector is shorter than 1; the export brings it back to 1, as encode does when asked to.
    cut = choices.dim is not None and _normalizes(model) and choices.normalize is None
    if choices.normalize or cut:
        options["normalize_embeddings"] = True
        said.append("normalize")
    return model, options, tuple(said)


def _chain(model: Any, choices: Choices) -> tuple[Any, list[str]]:
    """The model with another pooling, or without its last Normalize, where that was asked for."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling

    modules, said = list(model.children()), []
    if choices.asked_pooling not in (None, "none"):
        place = next((i for i, module in enumerate(modules) if isinstance(module, Pooling)), None)
        mode = _POOLINGS.get(str(choices.asked_pooling))
        if place is None or mode is None:
            raise NotJudged(f"{NAME} has no pooling '{choices.asked_pooling}' for this folder")
        width = modules[place].get_config_dict()
        sizes = [width[key] for key in ("embedding_dimension", "word_embedding_dimension") if key in width]
        modules[place] = Pooling(sizes[0], pooling_mode=mode)
        said.append(f"pooling {choices.asked_pooling}")
    if choices.normalize is False and _normalizes(model):
        modules.pop()
        said.append("no normalize")
    if not said:
        return model, said
    made = SentenceTransformer(
        modules=modules,
        device="cpu",
        prompts=dict(model.prompts),
        default_prompt_name=model.default_prompt_name,
        truncate_dim=model.truncate_dim,
    )
    return made, said


def _normalizes(model: Any) -> bool:
    from sentence_transformers.models import Normalize

    return isinstance(list(model.children())[-1], Normalize)
