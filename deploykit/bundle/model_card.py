"""``MODEL_CARD.md``: the facts of a bundle for people, all of them from the manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from deploykit.runtime import devices, judged
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
        *_asked(manifest),
        "| variant | engine | precision | bytes | worst cosine to torch |",
        "|---|---|---|---|---|",
        *(_row(manifest, variant) for variant in manifest.variants),
        "",
        *_judged(manifest),
        *_measured(manifest),
        *_on_devices(manifest),
        *_notes(manifest),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _asked(manifest: Manifest) -> Iterator[str]:
    """Prompts and further outputs, where the encoder has any."""
    prompts = manifest.card.preprocess.get("prompts") or {}
    default = manifest.card.preprocess.get("default_prompt")
    for name, text in sorted(prompts.items()):
        kind, prompt = (_plain(json.dumps(word, ensure_ascii=False)) for word in (name, text))
        unless = ", and without a kind" if name == default else ""
        yield f"- `encode(…, kind={kind})` puts {prompt} before each text{unless}."
    for spec in manifest.card.outputs:
        if spec.name != manifest.card.embedding.output:
            shape = _plain(", ".join(map(str, spec.shape)))
            yield f"- `encode(…, output={_plain(json.dumps(spec.name))})` gives another output of the graph, [{shape}]."
    if prompts or len(manifest.card.outputs) > 1:
        yield ""


def _row(manifest: Manifest, variant: Variant) -> str:
    name = f"**{variant.name}**" if variant.name == manifest.default else variant.name
    size = manifest.files[variant.path].size
    if variant.path.endswith(".xml"):
        size += manifest.files[variant.path.removesuffix(".xml") + ".bin"].size
    cosine = variant.proof.get("cosine_min")
    shown = f"{cosine:.6f}" if isinstance(cosine, int | float) else "not recorded"
    return f"| {name} | {variant.target} | {variant.precision} | {size} | {shown} |"


def _judged(manifest: Manifest) -> Iterator[str]:
    """How the portable model stands beside the library that the source comes from, where that was recorded."""
    if said := judged.sentence(manifest.provenance):
        yield f"Judged by the source's own library: {_plain(said)}."
        yield ""


def _measured(manifest: Manifest) -> Iterator[str]:
    """What was measured when it was built: times with their interval, calls and machine; drift with its examples."""
    rows = [v for v in manifest.variants if v.latency or set(v.drift) - {devices.KEY}]
    if not rows:
        return
    hardware = sorted({str(v.latency["hardware"]) for v in rows if "hardware" in v.latency})
    yield f"Measured when it was built{f', on the hardware {_plain(hardware[0])}' if len(hardware) == 1 else ''}:"
    yield ""
    yield "| variant | p50 of one input | p50 of a batch | drift (1 − mean cosine to fp32) | what runs |"
    yield "|---|---|---|---|---|"
    for variant in rows:
        times = (_time(variant.latency.get(key)) for key in ("single", "batch"))
        runs = _plain(variant.audit.get("sentence") or "not recorded").replace("|", "/")
        yield f"| {variant.name} | {' | '.join(times)} | {_drift(variant.drift)} | {runs} |"
    yield ""


def _on_devices(manifest: Manifest) -> Iterator[str]:
    """What devices found in their self-test, where it was recorded."""
    found = [(variant, row) for variant in manifest.variants for row in devices.rows(variant)]
    if found:
        yield "Self-tests on devices:"
        yield ""
        yield from (f"- {variant.name}: {_plain(devices.sentence(row))}" for variant, row in found)
        yield ""


def _time(row: Any) -> str:
    try:
        interval = f"[{row['low_ms']:.2f}, {row['high_ms']:.2f}]"
        return f"{row['p50_ms']:.2f} ms {interval}, {row['calls']} calls of {row['shape']}"
    except (TypeError, KeyError, ValueError):
        return "not measured"


def _drift(drift: Mapping[str, Any]) -> str:
    try:
        found = drift["figures"]["drift"]
        return f"{found['value']:.5f} [{found['low']:.5f}, {found['high']:.5f}], {found['n']} examples"
    except (TypeError, KeyError, ValueError):
        return "not measured"


def _notes(manifest: Manifest) -> Iterator[str]:
    if manifest.default:
        yield f"The default is **{manifest.default}**; a device that cannot run it takes the next best."
        yield ""
    for entry in manifest.refused:
        yield f"- Not in the bundle: {_plain(entry.get('variant', '?'))}: {_plain(entry.get('reason', '?'))}"
    for axis, (low, high) in sorted(manifest.card.limits.axes.items()):
        yield f"- Proven for {axis} {low} to {high}."
    licence = manifest.card.provenance.get("license")
    yield f"- Licence of the source: {_plain(licence) if licence else 'the source states none'}."
    yield "- `sbom.cdx.json` lists every file with its SHA-256, what built them, and what a device needs beside them."
    yield from _facts("Source", manifest.card.provenance)
    yield from _facts("Built with", {k: v for k, v in manifest.provenance.items() if k != judged.KEY})


def _facts(title: str, facts: Mapping[str, Any]) -> Iterator[str]:
    if facts:
        yield ""
        yield f"## {title}"
        yield ""
        yield from (f"- {_plain(key)}: {_plain(value)}" for key, value in sorted(facts.items()))


def _plain(value: Any) -> str:
    """One line of text, so that no value can break the page."""
    return " ".join(str(value).split())
