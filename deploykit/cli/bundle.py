"""``deploykit bundle verify | sign | selftest | record | warm | pack | unpack | slim | layout``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.cli import console

if TYPE_CHECKING:
    from deploykit.runtime.selftest import VariantResult
    from deploykit.runtime.tensorrt.warm import Warmed

app = typer.Typer(
    help="Check, sign, test, pack, slim and lay out bundles.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
_Bundle = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A bundle folder or a packed .dkb file.", show_default=False)
]
_Packed = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE.dkb", help="The file to write. Default: beside BUNDLE, as NAME.dkb."),
]
_Folder = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="PATH", help="The folder to write. Default: beside it, as NAME.bundle."),
]
_NewBundle = Annotated[
    Path, typer.Option("--output", "-o", metavar="PATH", help="The bundle folder to write.", show_default=False)
]
_Required = Annotated[
    Path | None,
    typer.Option("--require-signature", metavar="KEY.pub", help="Refuse what this public Ed25519 key has not signed."),
]
_ControlFlow = Annotated[
    bool, typer.Option("--allow-control-flow", help="Let models with If, Loop or Scan pass: only if you trust them.")
]
_Key = Annotated[
    Path, typer.Option(metavar="KEY.pem", help="The private Ed25519 key to sign with.", show_default=False)
]
_NewKey = Annotated[bool, typer.Option("--new-key", help="Make the key first, and KEY.pem.pub for those who check.")]


@app.command()
def verify(
    bundle: _Bundle,
    require_signature: _Required = None,
    allow_control_flow: _ControlFlow = False,
    json: console.Json = False,
) -> None:
    """Check every file and every model, and the signature if asked.

    No file may be missing, altered, added or linked; models may hold nothing that an encoder needs not: operators of
    others, functions, control flow, constants from elsewhere or of terabytes. Models are read in a process with limits.
    Ends with 0 when the bundle is whole and with 1 when it is refused. No engine loads anything.

    Example: deploykit bundle verify minilm.bundle --require-signature key.pem.pub
    """
    from deploykit.errors import BundleError
    from deploykit.report.model import size_text
    from deploykit.runtime import Bundle
    from deploykit.runtime.trust import models, signature

    try:
        opened = Bundle.open(bundle)
        opened.verify(require_signature)
        models.check_in_child(opened, control_flow=allow_control_flow)
        signed = signature.read(opened.root)
    except BundleError as error:
        if not bundle.exists():
            raise
        if json:
            console.print_json({"bundle": bundle, "passed": False, "reason": error.message, "hint": error.hint})
        console.say(f"refused: {error}")
        raise typer.Exit(1) from None
    files = opened.manifest.files
    size = sum(entry.size for entry in files.values())
    if json:
        console.print_json(
            {
                "bundle": bundle,
                "passed": True,
                "files": len(files),
                "bytes": size,
                "digest": opened.digest,
                "key": signed and signed.key,
                "signature_checked": require_signature is not None,
            }
        )
        return
    typer.echo(f"{bundle} is whole: {len(files)} files, {size_text(size)}, manifest sha256 {opened.digest}")
    if require_signature is not None:
        typer.echo(f"it is signed by the key required, {signature.short(signed.key) if signed else ''}")
    elif signed:
        key = signature.short(signed.key)
        typer.echo(f"it says that the key {key} signed it; --require-signature KEY.pub checks that")


@app.command()
def sign(bundle: _Bundle, key: _Key, new_key: _NewKey = False, json: console.Json = False) -> None:
    """Sign a bundle, a folder or a packed file, with an Ed25519 key.

    The signature stands beside the manifest, which lists the digest of every file, and goes along when the bundle is
    packed. Devices check it with --require-signature, or load(require_signature="KEY.pem.pub").

    Example: deploykit bundle sign minilm.bundle --key key.pem --new-key
    """
    from deploykit.bundle import sign as library

    public = library.new_key(key) if new_key else None
    made = library.sign(bundle, key)
    if json:
        console.print_json({"bundle": bundle, "key": made.key, "public_key": public})
    else:
        typer.echo(f"{bundle} is signed by the key {made.key}")
        if public:
            typer.echo(f"{public} is the public key: give it to those who check; keep {key} to yourself")


@app.command()
def selftest(bundle: _Bundle, json: console.Json = False) -> None:
    """Run every variant here and compare.

    Raw inputs go in, the stored vectors must come out. It tests the preprocessing too. Each variant runs in a process
    of its own and is timed; what is found is remembered for the loads that follow. Ends with 1 when a variant fails,
    and with 4 when none can run here.
    """
    from deploykit.bundle.record import report
    from deploykit.report.terminal import table
    from deploykit.runtime import Bundle
    from deploykit.runtime.decide import taken
    from deploykit.runtime.selftest import selftest as run_selftest

    opened = Bundle.open(bundle)
    with console.Progress() as progress:
        progress.begin("testing every variant")
        results = run_selftest(opened, isolated=True)
    failed = any(r.status == "failed" for r in results)
    passed = not failed and any(r.status == "passed" for r in results)
    used, why = taken(opened, results)
    if json:
        console.print_json(report(opened, results) | {"bundle": bundle, "used": used, "why": why})
    else:
        typer.echo(table(("variant", "status", "worst cosine", "p50 ms", "why"), [_cells(r) for r in results]))
        if used:
            typer.echo(f"a load here takes {used}: {why}")
    if not passed:
        raise typer.Exit(1 if failed else console.EXIT_MISSING)


def _cells(result: VariantResult) -> tuple[str, ...]:
    from deploykit.report.model import cosine_text, number

    cosine = "" if result.cosine_min is None else cosine_text(result.cosine_min)
    p50_ms = "" if result.p50_ms is None else number(result.p50_ms)
    return (result.variant, result.status, cosine, p50_ms, result.reason)


@app.command()
def record(
    bundle: _Bundle,
    report: Annotated[
        list[Path],
        typer.Argument(metavar="REPORT.json…", help="What `bundle selftest --json` printed on a device."),
    ],
    times: Annotated[
        bool, typer.Option("--times/--no-times", help="Keep times too; --no-times for an emulated device.")
    ] = True,
    drop_signature: Annotated[
        bool, typer.Option("--drop-signature", help="Remove a signature: it will not fit. Sign it again afterwards.")
    ] = False,
    json: console.Json = False,
) -> None:
    """Keep in a bundle what devices found.

    Their self-tests' figures go into the manifest, where inspect and the model card show them: one record for each
    kind of device, with its instruction sets, engine, worst cosine, and the time of one input. The same kind measured
    again replaces its record; a report on another bundle is refused.

    Example: deploykit bundle selftest minilm.bundle --json > pi4.json; deploykit bundle record minilm.bundle pi4.json
    """
    from dataclasses import asdict

    from deploykit.bundle import record as library

    done = library.record(bundle, report, times, drop_signature)
    if json:
        console.print_json(asdict(done))
        return
    for device, variants in done.devices.items():
        typer.echo(f"{device}: {', '.join(variants)}")
    typer.echo(f"{bundle} has the manifest sha256 {done.digest} now")
    if done.dropped_signature:
        console.say(f"the signature was removed; sign it again: deploykit bundle sign {bundle} --key KEY.pem")


@app.command()
def warm(
    bundle: _Bundle,
    variant: Annotated[
        list[str] | None,
        typer.Option("--variant", metavar="NAME", help="Only this variant; may be repeated. Default: all of TensorRT."),
    ] = None,
    json: console.Json = False,
) -> None:
    """Build the TensorRT engines of a bundle on this device.

    Each is kept in a cache of this user (DEPLOYKIT_ENGINES), by model, recipe, TensorRT, GPU and driver; one that is
    there is reused, an older one that does not fit is built anew. Ends with 1 when a build fails, and with 4 when
    nothing can be built here.
    """
    from dataclasses import asdict

    from deploykit.errors import MissingError
    from deploykit.report.terminal import table
    from deploykit.runtime import Bundle
    from deploykit.runtime.tensorrt import warm as library

    announce = None if json else lambda name: console.say(f"building or finding the engine of {name} …")
    results = library.warm(Bundle.open(bundle), variant or (), announce=announce)
    failed = any(r.status == "failed" for r in results)
    lacking = bool(results) and all(r.status == "lacking" for r in results)
    if json:
        console.print_json(
            {"bundle": bundle, "passed": not failed and not lacking, "engines": [asdict(r) for r in results]}
        )
    elif lacking:
        raise MissingError(f"no engine of '{bundle}' can be built here: {results[0].reason}", hint=results[0].hint)
    elif not results:
        typer.echo(f"{bundle} has no TensorRT variant: there is nothing to build")
    else:
        typer.echo(table(("variant", "engine", "s", "GPU", "why"), [_warmed_cells(r) for r in results]))
    if failed or lacking:
        raise typer.Exit(1 if failed else console.EXIT_MISSING)


def _warmed_cells(result: Warmed) -> tuple[str, ...]:
    facts = result.effective
    gpu = f"{facts['device']} (SM {facts['compute_capability']}, CUDA {facts['driver']})" if facts else ""
    return (result.variant, result.status, f"{result.seconds:.1f}" if result.seconds else "", gpu, result.reason)


@app.command()
def pack(bundle: _Bundle, output: _Packed = None, json: console.Json = False) -> None:
    """Make one file of a bundle.

    Every command takes the .dkb file like the folder.

    Example: deploykit bundle pack minilm.bundle -o minilm.dkb
    """
    from deploykit.bundle import pack as library

    _tell(library.pack(bundle, output or bundle.with_suffix(".dkb")), json)


@app.command()
def unpack(bundle: _Bundle, output: _Folder = None, json: console.Json = False) -> None:
    """Make a folder of a packed bundle again.

    Every file is checked on the way.

    Example: deploykit bundle unpack minilm.dkb -o minilm.bundle
    """
    from deploykit.bundle import pack as library

    _tell(library.unpack(bundle, output or bundle.with_suffix(".bundle")), json)


@app.command()
def slim(
    bundle: _Bundle,
    output: _NewBundle,
    arch: Annotated[
        str, typer.Option(metavar="NAME", help="Only what this architecture may run: aarch64, x86_64.")
    ] = "",
    target: Annotated[
        list[str] | None, typer.Option("--target", "-t", metavar="NAME", help="Only this engine; may be repeated.")
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option("--variant", metavar="NAME", help="Only this variant; may be repeated.")
    ] = None,
    no_portable: Annotated[
        bool, typer.Option("--no-portable", help="Leave the portable fp32 model out: nothing is left to fall back on.")
    ] = False,
    json: console.Json = False,
) -> None:
    """Copy a bundle with only what a device can use.

    The portable fp32 model stays, so that the copy runs wherever onnxruntime does; --no-portable leaves it out, and
    loading is refused where no variant can run. The copy says where it comes from, and is not signed.

    Example: deploykit bundle slim minilm.bundle -o pi.bundle --arch aarch64 --target onnxruntime
    """
    from deploykit.bundle import slim as library
    from deploykit.report.model import size_text

    done = library.slim(
        bundle, output, library.Choice(arch, tuple(target or ()), tuple(variant or ()), not no_portable)
    )
    if done.unsigned:
        console.say(f"note: the signature of {bundle} is not for the copy: sign that again")
    if json:
        console.print_json(
            {
                "output": output,
                "digest": done.bundle.digest,
                "variants": list(done.kept),
                "left_out": dict(done.dropped),
                "bytes_before": done.bytes_before,
                "bytes": done.bytes_after,
                "portable_bytes": done.portable_bytes,
                "signature_left_out": done.unsigned,
            }
        )
        return
    for name, reason in done.dropped.items():
        typer.echo(f"left out: {name}: {reason}")
    sizes = [size_text(size) for size in (done.bytes_before, done.bytes_after, done.portable_bytes)]
    rest = f"of which {sizes[2]} are the portable model" if done.portable_bytes else "without the portable model"
    typer.echo(f"{output}: {sizes[0]} became {sizes[1]}, {rest}")
    typer.echo(f"it holds: {', '.join(done.kept) or 'the portable model alone'}")


@app.command()
def layout(
    bundle: _Bundle,
    server: Annotated[
        str,
        typer.Option("--for", metavar="SERVER", help="triton, openvino-model-server or tei.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="The folder to write.", show_default=False)
    ],
    variant: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The variant to serve. Default: the fastest that the server runs as it was proven."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model's name on the server. Default: the encoder's.")
    ] = None,
    json: console.Json = False,
) -> None:
    """Write the folder that a model server loads.

    Triton Inference Server, OpenVINO Model Server, or Text Embeddings Inference. The first two take tokens: the
    README.md in the folder says how texts become those.

    Example: deploykit bundle layout minilm.bundle --for triton -o models
    """
    from dataclasses import asdict

    from deploykit.bundle import layouts as library
    from deploykit.report.model import size_text

    written = library.write(bundle, server, output, variant, name)
    if written.caveat:
        console.say(f"note: {written.caveat}")
    if json:
        console.print_json(asdict(written))
    else:
        typer.echo(f"{output}: {written.variant} as '{written.name}', {size_text(written.size)}; see its README.md")


def _tell(written: Path, json: bool) -> None:
    if json:
        console.print_json({"output": written})
    else:
        typer.echo(str(written))
