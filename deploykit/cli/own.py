"""The options of ``deploykit export`` for modules of one's own: their class, and what they take."""

from __future__ import annotations

import json
import re
from typing import Any

import typer

from deploykit.errors import RecipeError

MODEL = typer.Option(
    "--model",
    metavar="MODULE:CLASS",
    help="The class that bare weights belong to: package.module:Class or path/to/file.py:Class. Its code is run.",
)
INIT = typer.Option(metavar="JSON", help="Arguments of that class, such as '{\"depth\": 4}'.")
IMAGE = typer.Option(
    metavar="N or HxW",
    help="A module of your own takes pictures: shorter edge to N and an N x N crop from the centre, or exactly H x W.",
)
RESIZE = typer.Option(metavar="N", min=1, help="With --image: the shorter edge before the crop, such as 256 for 224.")
RESAMPLE = typer.Option(
    metavar="NAME", help="With --image: nearest, bilinear (default), bicubic, lanczos, box, hamming."
)
MEAN = typer.Option(
    metavar="R,G,B", help="With --image: subtracted from values of 0 to 1, such as 0.485,0.456,0.406. Default: 0."
)
STD = typer.Option(metavar="R,G,B", help="With --image: what they are divided by then. Default: 1.")
AUDIO = typer.Option(metavar="HZ", min=1, help="A module of your own takes waveforms of that sampling rate.")
TEXT = typer.Option(metavar="FOLDER", help="A module of your own takes token ids of the tokenizer in this folder.")


def overrides(
    *,
    model: str | None,
    init: str | None,
    image: str | None,
    resize: int | None,
    resample: str | None,
    mean: str | None,
    std: str | None,
    audio: int | None,
    text: str | None,
) -> dict[str, Any]:
    """The keys of ``[source]`` that the options amount to."""
    return {
        "architecture": model,
        "init": None if init is None else _arguments(init),
        "image": None if image is None else _size(image),
        "resize": resize,
        "resample": resample,
        "mean": None if mean is None else _numbers("--mean", mean),
        "std": None if std is None else _numbers("--std", std),
        "audio": audio,
        "text": text,
    }


def _arguments(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise RecipeError(f"--init is not JSON: {error}", hint="write --init '{\"depth\": 4}'") from None
    if not isinstance(data, dict):
        raise RecipeError(f"--init is {text}, not arguments by name", hint="write --init '{\"depth\": 4}'")
    return data


def _size(text: str) -> int | list[int]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text):
        raise RecipeError(f"--image is '{text}'", hint="give one edge (224), or height x width (224x160), in pixels")
    numbers = [int(number) for number in text.split("x")]
    return numbers if len(numbers) == 2 else numbers[0]


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        hint = f"one number, or one for each channel: {option} 0.5,0.5,0.5"
        raise RecipeError(f"{option} is '{text}'", hint=hint) from None
