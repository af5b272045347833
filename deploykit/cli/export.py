"""``deploykit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.cli import console, own, steps
from deploykit.errors import RecipeError

_SOURCE = typer.Argument(
    metavar="SOURCE",
    help="The trained encoder: a model folder, a Hugging Face id (org/name), timm:NAME, py:package.module:factory, "
    "a TorchScript file, a .pt2 or an .onnx file, or weights with --model.",
    show_default=False,
)
_OUTPUT = typer.Option("--output", "-o", metavar="PATH", help="The bundle to write. Default: SOURCE's name + .bundle.")
_TARGET = typer.Option(
    *("--target", "-t"),
    metavar="NAME",
    help="An engine to build for; repeat it for several. `deploykit list targets` shows all. Default: onnxruntime.",
)
_PRECISION = typer.Option(
    *("--precision", "-p"),
    metavar="NAME",
    help="A precision to build; repeat it for several. `deploykit list precisions` shows all; auto builds each that a "
    "target has and keeps the fastest inside the budget. Default: fp32.",
)
_CALIBRATION = typer.Option(
    metavar="DATA",
    help="Inputs of your own from which int8 takes its ranges: .txt, .jsonl, .csv, .parquet, a folder, …; some hundred "
    "are enough. Default: a builtin set, with a warning.",
)
_EVALUATION = typer.Option(
    metavar="DATA",
    help="Inputs on which drift is measured. Default: those of the calibration data that were not calibrated on.",
)
_BUDGET = typer.Option(
    metavar="TEXT",
    help="What a variant may lose and must gain: 'drift<=0.01 p1>=0.975 p50<=4ms size<=60MB', or a profile: strict, "
    "standard, edge. Default: standard; 'none' is no budget.",
)
_SM = typer.Option(
    metavar="N.N",
    help="A compute capability (8.9) for which tensorrt-rtx builds the engine now, without the GPU; repeat it for "
    "several. Default: the device builds it.",
)
_OPSET = typer.Option(metavar="N", min=18, max=23, help="Version of the ONNX operators in the model. Default: 20.")
_MAX_LENGTH = typer.Option(
    metavar="N", min=1, help="Longest text in tokens; longer ones are cut. Default: as the model says."
)
_FIXED_LENGTH = typer.Option(
    metavar="N",
    min=1,
    help="Give the text encoder this one length alone: texts are padded to N tokens, or cut. Default: any length.",
)
_DIM = typer.Option(
    metavar="N",
    min=1,
    help="Keep the first N numbers of each vector, at length 1 again where the model normalises; Matryoshka models are "
    "trained for that. Default: as the model says, else all.",
)
_TOWER = typer.Option(metavar="NAME", help="Which encoder of a model that has several, as CLIP: text, vision or audio.")
_ROUTE = typer.Option(
    metavar="NAME",
    help="Which encoder of a sentence-transformers folder that routes its inputs, such as query or document.",
)
_PREPROCESS = typer.Option(
    metavar="none",
    help="none: the bundle takes the model's own tensors, and you preprocess. Default: the bundle does.",
)
_PROMPT = typer.Option(
    metavar="NAME=TEXT",
    help="What encode(texts, kind=NAME) puts before a text, such as 'query=query: '; repeat it for several. "
    "Default: as the model's own files say.",
)
_ALSO = typer.Option(
    metavar="NAME",
    help="A further output, for encode(…, output=NAME): token_embeddings, hidden:N (a hidden layer; -2 is the last but "
    "one), pooled:N (that layer, pooled) or pooler; repeat it for several. Default: the embedding alone.",
)
_POOLING = typer.Option(
    metavar="NAME",
    help="How token vectors become one: mean, cls, last, max, mean_sqrt_len or none. Default: as the model says.",
)
_NORMALIZE = typer.Option(
    "--normalize/--no-normalize",
    help="Scale vectors to length 1, or leave them. Default: as the model says.",
    show_default=False,
)
_BIND = typer.Option(
    metavar="NAME=VALUE",
    help="Make an input of an .onnx a constant: zeros, ones, a number or FILE.npy, such as state=zeros or sr=16000; "
    "repeat it for several.",
)
_OUTPUT_NAME = typer.Option(
    metavar="NAME", help="The output of an .onnx that is the embedding. Default: found by name and rank."
)
_AXIS = typer.Option(
    metavar="NAME=SIZES",
    help="Sizes of a dynamic axis of preprocessed tensors: length=1:2048, or one for good: width=320; repeat it for "
    "several. Default: found by trying.",
)
_EXAMPLE = typer.Option(
    metavar="FILE.npz",
    help="Preprocessed tensors to prove with, by input name, the first axis counting the inputs. Default: the "
    "evaluation or calibration data if they are an .npz, else random numbers.",
)
_REVISION = typer.Option(metavar="REV", help="Branch, tag or commit of a Hugging Face id.")
_TRUST = typer.Option("--trust-remote-code", help="Run Python code that the model brings along: only if you trust it.")
_JUDGE = typer.Option(
    "--judge/--no-judge",
    help="Hold the vectors of raw inputs against those of the model's own library (sentence-transformers, "
    "transformers, timm). Without it the bundle says that it was not judged.",
)
SHOW_RECIPE = typer.Option("--show-recipe", help="Print the recipe (TOML) that this amounts to, and do nothing else.")
DRY_RUN = typer.Option("--dry-run", help="Print the steps and which results are already stored, and do nothing else.")


def export(
    source: Annotated[str, _SOURCE],
    output: Annotated[Path | None, _OUTPUT] = None,
    target: Annotated[list[str] | None, _TARGET] = None,
    precision: Annotated[list[str] | None, _PRECISION] = None,
    calibration: Annotated[str | None, _CALIBRATION] = None,
    evaluation: Annotated[str | None, _EVALUATION] = None,
    budget: Annotated[str | None, _BUDGET] = None,
    sm: Annotated[list[str] | None, _SM] = None,
    opset: Annotated[int | None, _OPSET] = None,
    max_length: Annotated[int | None, _MAX_LENGTH] = None,
    fixed_length: Annotated[int | None, _FIXED_LENGTH] = None,
    dim: Annotated[int | None, _DIM] = None,
    tower: Annotated[str | None, _TOWER] = None,
    route: Annotated[str | None, _ROUTE] = None,
    preprocess: Annotated[str | None, _PREPROCESS] = None,
    prompt: Annotated[list[str] | None, _PROMPT] = None,
    also: Annotated[list[str] | None, _ALSO] = None,
    pooling: Annotated[str | None, _POOLING] = None,
    normalize: Annotated[bool | None, _NORMALIZE] = None,
    model: Annotated[str | None, own.MODEL] = None,
    init: Annotated[str | None, own.INIT] = None,
    image: Annotated[str | None, own.IMAGE] = None,
    resize: Annotated[int | None, own.RESIZE] = None,
    resample: Annotated[str | None, own.RESAMPLE] = None,
    mean: Annotated[str | None, own.MEAN] = None,
    std: Annotated[str | None, own.STD] = None,
    audio: Annotated[int | None, own.AUDIO] = None,
    text: Annotated[str | None, own.TEXT] = None,
    bind: Annotated[list[str] | None, _BIND] = None,
    output_name: Annotated[str | None, _OUTPUT_NAME] = None,
    axis: Annotated[list[str] | None, _AXIS] = None,
    example: Annotated[str | None, _EXAMPLE] = None,
    revision: Annotated[str | None, _REVISION] = None,
    trust_remote_code: Annotated[bool, _TRUST] = False,
    judge: Annotated[bool, _JUDGE] = True,
    show_recipe: Annotated[bool, SHOW_RECIPE] = False,
    dry_run: Annotated[bool, DRY_RUN] = False,
    json: console.Json = False,
) -> None:
    """Build a bundle from a trained encoder.

    Exports to ONNX, builds a variant for each target and precision, and proves each on its engine: the vectors must
    be those of torch, at many sizes. Where precision is lost, the drift is measured on real inputs and judged by the
    budget (standard, unless told otherwise). Ends with 0 when every variant passed. When one did not, it ends with 1,
    and the bundle holds the others.

    Example: deploykit export all-MiniLM-L6-v2/ -t openvino -p auto --calibration texts.txt --budget standard
    """
    from deploykit import api

    recipe = api.recipe(
        source,
        output=output,
        variants={"targets": _split(target), "precisions": _split(precision)},
        data={"calibration": calibration, "evaluation": evaluation},
        budget=budget,
        sm=_split(sm),
        settings={"opset": opset},
        overrides={
            "max_length": max_length,
            "fixed_length": fixed_length,
            "dim": dim,
            "tower": tower,
            "route": route,
            "preprocess": preprocess,
            "prompts": _named("--prompt", "'query=query: '", prompt),
            "outputs": _split(also) or None,
            "pooling": pooling,
            "normalize": normalize,
            **own.overrides(
                model=model,
                init=init,
                image=image,
                resize=resize,
                resample=resample,
                mean=mean,
                std=std,
                audio=audio,
                text=text,
            ),
            "bind": _named("--bind", "state=zeros", bind),
            "output_name": output_name,
            "axes": _named("--axis", "length=1:2048", axis),
            "example": example,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
        },
        judge=judge,
        where="the command line",
    )
    if show_recipe:
        steps.show_recipe(recipe, json)
    elif dry_run:
        steps.show_plan(recipe, json)
    else:
        steps.carry_out(recipe, None, json)


def _named(option: str, example: str, given: list[str] | None) -> dict[str, str] | None:
    """``query=query: `` by its name; what stands behind the first ``=`` is kept as it is, blanks at its end too."""
    found: dict[str, str] = {}
    for text in given or ():
        name, mark, value = text.partition("=")
        if not mark or not name.strip():
            raise RecipeError(f"{option} is '{text}', not NAME=TEXT", hint=f"write {option} {example}")
        if name.strip() in found:
            raise RecipeError(f"{option} names '{name.strip()}' twice", hint="give each name one text")
        found[name.strip()] = value
    return found or None


def _split(names: list[str] | None) -> list[str]:
    """``-t a -t b`` and ``-t a,b`` mean the same."""
    return [name.strip() for text in names or () for name in text.split(",") if name.strip()]
