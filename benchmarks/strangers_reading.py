"""A quick look at the rows of `benchmarks.strangers`: what deploykit reads, run by torch, without export or bundle.

Misread settings and files show in a second a row. Padding, batches, the export and the engines do not: the verdicts of
the whole benchmark are the command's alone.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import strangers_judge as judge
from benchmarks.strangers_kit import TRAP, Call, Case, Stranger

_FLAGS = {"--normalize": "normalize", "--trust-remote-code": "trust_remote_code"}


def run(stranger: Stranger) -> judge.Verdict:
    """Make the row in this process, open its source, and encode one input at a time."""
    folder = Path(tempfile.mkdtemp(prefix="strangers-"))
    try:
        verdict = _verdict(stranger.make(folder / "source"), folder)
        trapped = (folder / TRAP).exists()
        return judge.Verdict(judge.WRONG, "code inside the source was run") if trapped else verdict
    except Exception as error:
        return judge.Verdict(judge.UNMADE, f"{type(error).__name__}: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def options(words: Sequence[str]) -> dict[str, Any]:
    """The command's options as those of `deploykit.sources.Options`."""
    found: dict[str, Any] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        if word in _FLAGS:
            found[_FLAGS[word]] = True
            continue
        value = left.pop(0)
        if word == "--prompt":
            name, text = value.split("=", 1)
            found["prompts"] = {**found.get("prompts", {}), name: text}
        else:
            found[word[2:].replace("-", "_")] = int(value) if value.isdigit() else value
    return found


def _verdict(case: Case, folder: Path) -> judge.Verdict:
    from deploykit import sources
    from deploykit.errors import DeploykitError
    from deploykit.runtime.preprocess import open_preprocessor

    asked = sources.Options(**options(case.options))
    try:
        source = sources.open_source(str(case.source), asked)
    except DeploykitError as error:
        if error.hint:
            return judge.Verdict(judge.REFUSED, f"{error.message} → {error.hint}")
        return judge.Verdict(judge.TRACEBACK, f"{error.message}, and no fix")
    except Exception as error:
        return judge.Verdict(judge.TRACEBACK, f"{type(error).__name__}: {error}")
    for name, path in source.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / name)
    if not case.calls:
        return judge.of_calls([], [])
    preprocessor = open_preprocessor(source.card, folder)
    wanted = [judge.Wanted(call.expected, call.least) for call in case.calls]
    return judge.of_calls(wanted, [_answer(source, preprocessor, call) for call in case.calls])


def _answer(source: Any, preprocessor: Any, call: Call) -> judge.Answer:
    from deploykit.errors import DeploykitError

    try:
        if isinstance(call.inputs, Mapping):
            return judge.Answer("vectors", _embed(source, call.inputs))
        items = preprocessor.items([str(entry) for entry in call.inputs], kind=call.kind)
        rows = [_embed(source, preprocessor.collate([item])) for item in items]
    except DeploykitError as error:
        return judge.Answer("error", None, error.message, error.hint or "")
    except Exception as error:
        return judge.Answer("traceback", None, f"{type(error).__name__}: {error}")
    return judge.Answer("vectors", np.concatenate(rows))


def _embed(source: Any, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    import torch

    if source.module is None:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(source.model_path), providers=["CPUExecutionProvider"])
        rows: np.ndarray = session.run([source.card.embedding.output], dict(feeds))[0]
        return rows
    with torch.inference_mode():
        given = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in feeds.items()}
        output = source.module(**given)
    return np.asarray((output[0] if isinstance(output, tuple) else output).float().numpy())
