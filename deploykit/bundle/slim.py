"""A copy of a bundle that holds only what one kind of device can use; everything in it is as it was proven."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

from deploykit.bundle import model_card, sbom
from deploykit.bundle.write import Contents, write_bundle
from deploykit.errors import RecipeError, UnknownNameError, nearest
from deploykit.runtime.bundle import PACKED_SUFFIX, PORTABLE_PATH, Bundle
from deploykit.runtime.hardware import normalize_architecture
from deploykit.runtime.manifest import SIGNATURE_NAME, SelfTest, Variant

#: How the kernel's names of CPU features begin, by architecture. A name of neither says nothing about the architecture.
_FEATURES: Final[Mapping[str, tuple[str, ...]]] = {
    "x86_64": ("amx", "avx", "sse", "ssse", "fma", "f16c"),
    "aarch64": ("asimd", "sve", "sme", "i8mm", "bf16", "fphp"),
}
_PORTABLE: Final = "portable"


@dataclass(frozen=True)
class Choice:
    """What the device is. Empty: anything. ``variants`` may name ``portable``, the fp32 model.

    ``portable`` False leaves that model out, and with it each variant that is no other file.
    """

    architecture: str = ""
    targets: Sequence[str] = ()
    variants: Sequence[str] = ()
    portable: bool = True


@dataclass(frozen=True)
class Slimmed:
    """What was written. ``dropped`` gives the reason for each variant that stayed behind.

    Sizes are bytes of all listed files; ``portable_bytes`` is the part of the portable model, 0 without it.
    ``unsigned`` says that a signature stayed behind: it was one for another manifest.
    """

    bundle: Bundle
    kept: tuple[str, ...]
    dropped: Mapping[str, str] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0
    portable_bytes: int = 0
    unsigned: bool = False


def slim(bundle: Path, output: Path, choice: Choice) -> Slimmed:
    """Write what ``choice`` admits of the bundle at ``bundle`` (verified first) as the bundle folder ``output``.

    The portable model stays unless ``choice`` leaves it out, which the new manifest says: loading is refused where
    nothing else can run, and so is what compares with it. The new manifest names the digest of the one
    that it comes from; where the default is left behind, a device takes the fastest measured. `RecipeError` when
    nothing is left or ``output`` is in the way, `UnknownNameError` for a name that the bundle does not have.
    """
    _check_output(bundle, output)
    opened = Bundle.open(bundle)
    opened.verify()
    dropped = _dropped(opened, choice)
    kept = [variant for variant in opened.manifest.variants if variant.name not in dropped]
    if not kept and (_PORTABLE not in choice.variants or not choice.portable):
        reasons = "; ".join(f"{name}: {why}" for name, why in dropped.items()) or "it has no variants"
        raise RecipeError(
            f"nothing is left of '{bundle}': {reasons}",
            hint="ask for less, or for `--variant portable`: the fp32 model alone, on onnxruntime",
        )
    written = write_bundle(output, _contents(opened, kept, dropped, choice))
    return Slimmed(
        bundle=written,
        kept=tuple(variant.name for variant in kept),
        dropped=dropped,
        bytes_before=_bytes(opened),
        bytes_after=_bytes(written),
        portable_bytes=written.manifest.files[PORTABLE_PATH].size if written.manifest.portable else 0,
        unsigned=(opened.root / SIGNATURE_NAME).is_file(),
    )


def _check_output(bundle: Path, output: Path) -> None:
    if output.suffix == PACKED_SUFFIX:
        raise RecipeError(
            f"'{output}' is the name of a packed bundle, and a folder is written",
            hint=f"write {output.with_suffix('.bundle')}, then `deploykit bundle pack` it",
        )
    if output.exists() and bundle.exists() and output.resolve() == bundle.resolve():
        raise RecipeError(f"'{output}' is the bundle itself", hint="give another output: what is left out stays there")


def _dropped(bundle: Bundle, choice: Choice) -> dict[str, str]:
    """Why each variant that stays behind does so; unknown names are errors."""
    variants = bundle.manifest.variants
    names = [variant.name for variant in variants]
    _check_known("variant", choice.variants, [*names, _PORTABLE])
    _check_known("variant for the target", choice.targets, sorted({variant.target for variant in variants}))
    architecture = _architecture(choice.architecture, variants)
    wanted = {bundle.variant(name).name for name in choice.variants}
    dropped: dict[str, str] = {}
    for variant in variants:
        if wanted and variant.name not in wanted:
            dropped[variant.name] = "it was not asked for"
        elif choice.targets and variant.target not in choice.targets:
            dropped[variant.name] = f"it is for {variant.target}"
        elif not choice.portable and variant.path == PORTABLE_PATH:
            dropped[variant.name] = "it is the portable model, which is left out"
        elif architecture and (reason := foreign(variant, architecture)):
            dropped[variant.name] = reason
    return dropped


def foreign(variant: Variant, architecture: str) -> str:
    """Why no machine of ``architecture`` can run ``variant``, in words; empty when one may."""
    asked = [normalize_architecture(str(name)) for name in variant.requires.get("architecture", [])]
    if asked and architecture not in asked:
        return f"it is for {' or '.join(asked)}"
    for entry in variant.requires.get("cpu_features", []):
        features = str(entry).split("|")
        if all(_belongs_elsewhere(feature, architecture) for feature in features):
            return f"it needs {' or '.join(features)}, which no {architecture} has"
    return ""


def _belongs_elsewhere(feature: str, architecture: str) -> bool:
    owners = [name for name, begins in _FEATURES.items() if feature.startswith(begins)]
    return bool(owners) and architecture not in owners


def _architecture(name: str, variants: Sequence[Variant]) -> str:
    """``name`` in its usual spelling; `UnknownNameError` for one that neither deploykit nor a variant knows."""
    if not name:
        return ""
    known = {*_FEATURES, *(str(a) for variant in variants for a in variant.requires.get("architecture", []))}
    _check_known("architecture", [normalize_architecture(name)], sorted(known))
    return normalize_architecture(name)


def _check_known(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise UnknownNameError(f"there is no {what} '{name}'", hint=nearest(name, list(known)))


def _contents(bundle: Bundle, kept: Sequence[Variant], dropped: Mapping[str, str], choice: Choice) -> Contents:
    manifest = bundle.manifest
    owners = _owners(bundle)
    rewritten = (PORTABLE_PATH, model_card.NAME, sbom.NAME)
    left = not (choice.portable and manifest.portable)
    stem = str(PurePosixPath(PORTABLE_PATH).with_suffix("")) + "."
    shared = [
        name
        for name, paths in owners.items()
        if not paths and name not in rewritten and not (left and name.startswith(stem))
    ]
    provenance = {key: value for key, value in manifest.provenance.items() if key != "build"}
    asked: dict[str, Any] = {"architecture": choice.architecture, "targets": [*choice.targets]}
    asked |= {"variants": [*choice.variants], "no_portable": not choice.portable}
    return Contents(
        card=manifest.card,
        portable=bundle.file(PORTABLE_PATH) if choice.portable and manifest.portable else None,
        variants=[(variant, _files_of(bundle, variant, owners)) for variant in kept],
        files={name: bundle.file(name) for name in shared},
        selftest=_selftest(bundle, kept, choice.portable and manifest.portable),
        default=manifest.default if manifest.default not in dropped else "",
        refused=manifest.refused,
        candidates=manifest.candidates,
        # Without the build's digest: a rebuild must not take the slimmed bundle for its own finished work.
        provenance={**provenance, "slimmed": _origin(bundle, asked, dropped)},
    )


def _origin(bundle: Bundle, asked: Mapping[str, Any], dropped: Mapping[str, str]) -> dict[str, Any]:
    origin = {"from": bundle.digest, "left_out": dict(dropped), "asked": {k: v for k, v in asked.items() if v}}
    build = bundle.manifest.provenance.get("build")
    return {**origin, "build": build} if build else origin


def _owners(bundle: Bundle) -> dict[str, set[str]]:
    """Every listed file, with the paths of the variants that it belongs to: its own, or those with the longest stem
    that begins its name. None for what is no variant's: preprocessing, the self-test, the licence, the portable model.
    """
    stems = {variant.path: str(PurePosixPath(variant.path).with_suffix("")) for variant in bundle.manifest.variants}
    stems.pop(PORTABLE_PATH, None)
    owners: dict[str, set[str]] = {}
    for name in bundle.manifest.files:
        fitting = {path: stem for path, stem in stems.items() if name.startswith(f"{stem}.")}
        longest = max(map(len, fitting.values()), default=0)
        owners[name] = {name} if name in stems else {path for path, stem in fitting.items() if len(stem) == longest}
    owners[PORTABLE_PATH] = set()
    return owners


def _files_of(bundle: Bundle, variant: Variant, owners: Mapping[str, set[str]]) -> dict[str, Path]:
    if variant.path == PORTABLE_PATH:
        return {}
    return {name: bundle.file(name) for name, paths in owners.items() if variant.path in paths}


def _selftest(bundle: Bundle, kept: Sequence[Variant], portable: bool) -> SelfTest:
    """The bounds of what is kept. The portable model, where no variant names it, keeps the strictest of them all."""
    before = bundle.manifest.selftest
    names = {variant.name for variant in kept}
    bounds = {name: bound for name, bound in before.min_cosine.items() if name in names}
    if portable and bundle.portable.name not in names and before.min_cosine:
        bounds[_PORTABLE] = before.min_cosine.get(bundle.portable.name, max(before.min_cosine.values()))
    return replace(before, min_cosine=bounds)


def _bytes(bundle: Bundle) -> int:
    return sum(entry.size for entry in bundle.manifest.files.values())
