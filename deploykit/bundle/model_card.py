"""``MODEL_CARD.md``: the facts of a bundle for people, all of them from the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from deploykit.runtime.manifest import Manifest, Variant

NAME = "MODEL_CARD.md"


def render(manifest: Manifest) -> str:
    """The card in Markdown, the same for the same manifest."""
    card, embedding = manifest.card, manifest.card.embedding
    lines = [
        f"# {_plain(card.name)}",
        "",
        f"A {card.modality} encoder: {embedding.dim} numbers per input, pooling {embedding.pooling}, "
        f"{'of length 1' if embedding.normalized else 'not normalised'}.",
        "",
        "```python",
        "import deploykit",
        'encoder = deploykit.load("this folder")',
        "vectors = encoder.encode([…])",
        "```",
        "",
        "| variant | engine | precision | bytes | worst cosine to torch |",
        "|---|---|---|---|---|",
        *(_row(manifest, variant) for variant in manifest.variants),
        "",
        *_notes(manifest),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _row(manifest: Manifest, variant: Variant) -> str:
    name = f"**{variant.name}**" if variant.name == manifest.default else variant.name
    size = manifest.files[variant.path].size
    if variant.path.endswith(".xml"):
        size += manifest.files[variant.path.removesuffix(".xml") + ".bin"].size
    cosine = variant.proof.get("cosine_min")
    shown = f"{cosine:.6f}" if isinstance(cosine, int | float) else "not recorded"
    return f"| {name} | {variant.target} | {variant.precision} | {size} | {shown} |"


def _notes(manifest: Manifest) -> Iterator[str]:
    if manifest.default:
        yield f"The default is **{manifest.default}**; a device that cannot run it takes the next best."
        yield ""
    for entry in manifest.refused:
        yield f"- Not in the bundle: {_plain(entry.get('variant', '?'))}: {_plain(entry.get('reason', '?'))}"
    for axis, (low, high) in sorted(manifest.card.limits.axes.items()):
        yield f"- Proven for {axis} {low} to {high}."
    yield from _facts("Source", manifest.card.provenance)
    yield from _facts("Built with", manifest.provenance)


def _facts(title: str, facts: Mapping[str, Any]) -> Iterator[str]:
    if facts:
        yield ""
        yield f"## {title}"
        yield ""
        yield from (f"- {_plain(key)}: {_plain(value)}" for key, value in sorted(facts.items()))


def _plain(value: Any) -> str:
    """One line of text, so that no value can break the page."""
    return " ".join(str(value).split())
