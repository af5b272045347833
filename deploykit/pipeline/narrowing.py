"""Export a source; one that makes a number of the length of a text, once more with one length only, and saying so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploykit import sources
from deploykit.errors import DeploykitError, ExportError, ProofError
from deploykit.graph.export import Exported, ExportOptions, export
from deploykit.graph.prove import Case
from deploykit.pipeline import child
from deploykit.sources import Options, Source
from deploykit.sources._assemble import UNCHANGED

_ROWS = 4
"""Texts that are compared: one as long as can be, the others shorter."""


def export_or_narrow(
    model: str, options: Options, how: ExportOptions, out: Path
) -> tuple[Source, Exported, Sequence[Case]]:
    """Open ``model`` and export it below ``out``; with the cases of its proof.

    A text encoder whose length no exporter keeps dynamic gets its longest one alone, which is in the notes, the limits
    and the inputs of the card, unless padding to it changes the vectors. Raises as `export` does.
    """
    source = sources.open_source(model, options)
    try:
        return source, *export(source, how, out)
    except (ExportError, ProofError) as error:
        if source.card.modality != "text" or options.fixed_length is not None or not _is_the_length(error, source):
            raise
        longest = max(source.sizes["length"])
        fixed = sources.open_source(model, replace(options, max_length=None, fixed_length=longest))
        cosine = _padded_cosine(source, fixed, longest)
        if cosine <= UNCHANGED:
            error.hint = (
                f"{error.hint}; one length for all would change the vectors of shorter texts (cosine {cosine:.4f} to "
                f"those of the texts alone): fixed_length = {longest} if that is wanted"
            )
            raise
        try:
            exported, cases = export(fixed, replace(how, seconds=child.seconds_left()), out)
        except Exception:
            raise error from None  # why its length could not stay dynamic is what can be acted upon
        reason = error.__cause__ if isinstance(error.__cause__, DeploykitError) else error
        note = (
            f"every text is padded or cut to {longest} tokens (a smaller fixed_length is faster), because no exporter "
            f"keeps other lengths: {reason.message}"
        )
        return fixed, replace(exported, notes=(*exported.notes, note)), cases


def _padded_cosine(source: Source, fixed: Source, longest: int) -> float:
    """The worst cosine of texts padded to ``longest`` tokens to the same texts alone; 1 where nothing can be compared.

    It is low where the model sees padding, and where it takes the length of its input for that of the text.
    """
    if source.module is None or fixed.module is None:
        return 1.0
    import torch

    worst = 1.0
    padded = fixed.make_inputs(_ROWS, {"length": longest}, 0)
    taken = {spec.name for spec in source.card.inputs}
    with torch.inference_mode():
        together = _embedding(fixed.module(**padded)).double()
        for row, mask in enumerate(padded.get("attention_mask", ())):
            kept = mask.nonzero().flatten()
            text = {name: tensor[row : row + 1, kept] for name, tensor in padded.items() if name in taken}
            alone = _embedding(source.module(**text)).double()
            worst = min(worst, torch.nn.functional.cosine_similarity(together[row], alone[0], dim=0).item())
    return worst


def _embedding(output: Any) -> Any:
    """The first output: others that were asked for stand behind it."""
    return output[0] if isinstance(output, tuple) else output


def _is_the_length(error: ExportError | ProofError, source: Source) -> bool:
    """Whether the length is why: the model makes a number of it, or is right at some lengths and wrong at others."""
    if isinstance(error, ExportError) and error.frozen:
        return error.frozen == "length"
    wrong = {at.get("length") for at in error.wrong_at}
    return bool(wrong) and wrong < set(source.sizes["length"])
