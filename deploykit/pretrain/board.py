"""TensorBoard: the lines of ``metrics.jsonl`` as event files below the run's folder, on request.

Importing this module imports torch; the package tensorboard is an extra.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploykit.errors import MissingError
from deploykit.runtime.install import pip_install

Write = Callable[[Mapping[str, Any]], None]


@contextmanager
def writing(folder: Path, wanted: bool) -> Iterator[Write]:
    """What writes a line of the metrics, and is closed at the end; does nothing unless ``wanted``.

    The file is begun with the first line, at whose step those of an earlier, interrupted run are cut off: processes
    that tell nothing write nothing. `MissingError` at once when the package is not there.
    """
    if not wanted:
        yield lambda line: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        hint = f"{pip_install('tensorboard')}, or set training.tensorboard to false"
        raise MissingError("training.tensorboard needs tensorboard, which is not installed", hint=hint) from error
    made: list[Any] = []

    def write(line: Mapping[str, Any]) -> None:
        step = int(line["step"])
        if not made:
            made.append(SummaryWriter(str(folder), purge_step=step))
        for name, value in scalars(line).items():
            made[0].add_scalar(name, value, step)

    try:
        yield write
    finally:
        for writer in made:
            writer.close()


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of the metrics by their names in TensorBoard."""
    if "probe" in line:
        return {f"probe/{name}": float(value) for name, value in line["probe"].items()}
    named = {f"train/{name}": line[name] for name in ("loss", "lr", "views_per_s", "data_wait")}
    return named | {f"loss/{name}": value for name, value in line["parts"].items()}
