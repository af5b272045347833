"""What a bundle would answer to texts, beside what the original library answers to the same texts one by one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deploykit.runtime.preprocess import open_preprocessor
from deploykit.sources import Source

TEXTS = (
    "the cat sat on the mat",
    "dog",
    "a big red dog runs in the house " * 2,
    "the river of the blue house and the red cat sat on a mat " * 9,
    "of the mat and a blue river in the big house " * 22,
)


def bundle_vectors(source: Source, texts: Sequence[str] = TEXTS) -> Any:
    """Each text through the bundle's own preprocessing and the module that is exported; [texts, dim]."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        for name, path in source.files.items():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, Path(folder) / name)
        preprocessor = open_preprocessor(source.card, Path(folder))
        found = []
        for text in texts:
            feeds = preprocessor.collate(preprocessor.items([text]))
            assert source.module is not None
            with torch.inference_mode():
                found.append(source.module(**{name: torch.from_numpy(array) for name, array in feeds.items()})[0])
    return torch.stack(found)


def mean(output: Any) -> Any:
    """The mean over the tokens of a text that stands alone."""
    return output.last_hidden_state.mean(dim=1)


def library_vectors(
    folder: Path, texts: Sequence[str] = TEXTS, pool: Callable[[Any], Any] = mean, **options: Any
) -> Any:
    """AutoModel's answers to AutoTokenizer's tensors, truncated as the tokenizer does by itself; [texts, dim]."""
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(folder, **options).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    found = []
    for text in texts:
        feeds = tokenizer([text], truncation=True, return_tensors="pt", return_token_type_ids=False)
        with torch.inference_mode():
            found.append(pool(model(**feeds))[0])
    return torch.stack(found)


def cosines(vectors: Any, others: Any) -> Any:
    """Cosine of each pair of rows."""
    import torch

    return torch.nn.functional.cosine_similarity(vectors.double(), others.double())
