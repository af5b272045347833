"""Audio encoders: architectures, extractors and sound files, judged by transformers' own extractor and model."""

from __future__ import annotations

import wave
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.coverage_models import WIDE
from benchmarks.strangers_kit import Call, Case, Rows, save_model, write_json

ROWS = Rows("audio")
RATE = 16000
_RESAMPLED = 0.999
_CONVS = {"conv_dim": [12, 20, 28], "conv_stride": [5, 4, 4], "conv_kernel": [10, 8, 4], "num_feat_extract_layers": 3}
_WAVE = {**WIDE, **_CONVS, "vocab_size": 32, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
_LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
_EXTRACTOR = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1, "sampling_rate": RATE}
_EXTRACTOR |= {"padding_side": "right", "padding_value": 0.0, "do_normalize": True, "return_attention_mask": False}
_MASKED = {**_EXTRACTOR, "return_attention_mask": True}
_SECONDS = (0.7, 0.31, 1.6, 1.0)


def sound(seconds: float, seed: int, rate: int = RATE) -> np.ndarray:
    """Tones below 3 kHz that swell and fade, float64 [samples] in -1…1: the same sound at every rate."""
    rng = np.random.default_rng(seed)
    at = np.arange(round(seconds * rate)) / rate
    tones = zip(rng.uniform(90, 3000, 8), rng.uniform(0, 6.28, 8), rng.uniform(0.3, 5, 8), strict=True)
    made = sum(np.sin(2 * np.pi * f * at + phase) * (1.2 + np.sin(2 * np.pi * slow * at)) for f, phase, slow in tones)
    return np.asarray(made / 18)


def write_wav(path: Path, samples: np.ndarray, rate: int = RATE, width: int = 2) -> Path:
    """A wav file of ``width`` bytes a sample; ``samples`` [n] or [n, channels] in -1…1."""
    scaled = np.clip(np.round(samples * 2 ** (8 * width - 1)), -(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1)
    whole = scaled.astype("<i4")
    if width == 1:
        data = (whole + 128).astype(np.uint8).tobytes()
    else:
        data = whole.reshape(-1, 1).view(np.uint8)[:, :width].tobytes()
    with wave.open(str(path), "wb") as sink:
        sink.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        sink.setsampwidth(width)
        sink.setframerate(rate)
        sink.writeframes(data)
    return path


def read(path: Path) -> np.ndarray:
    """What soundfile reads, channels averaged: float32 [samples]."""
    import soundfile

    samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
    return np.asarray(samples.mean(axis=1), dtype=np.float32)


def by_audio(folder: Path, sounds: Sequence[np.ndarray], pick: str = "mean") -> np.ndarray:
    """AutoFeatureExtractor and AutoModel, one sound at a time at the extractor's own rate."""
    import torch
    import transformers

    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    with torch.inference_mode():
        for samples in sounds:
            given = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="pt")
            rows.append(_picked(model, given, pick).flatten().numpy())
    return np.stack(rows)


def _picked(model: Any, given: Any, pick: str) -> Any:
    if pick == "encoder":
        return model.get_encoder()(**given).last_hidden_state[0].mean(dim=0)
    if pick == "features":
        output = model.get_audio_features(**given)
        return output[0] if hasattr(output, "flatten") else output.pooler_output[0]
    output = model(**given)
    return output.last_hidden_state[0].mean(dim=0) if pick == "mean" else output[pick][0]


def wav2vec2(
    place: Path, extractor: Mapping[str, Any] | None = None, config: str = "Wav2Vec2Config", **how: Any
) -> Path:
    """A wav2vec2 (or its kin) with its extractor."""
    folder = place / "wav2vec2"
    save_model(folder, config, {**_WAVE, **how})
    write_json(folder / "preprocessor_config.json", dict(extractor or _EXTRACTOR))
    return folder


def judged(folder: Path, place: Path, pick: str = "mean", options: tuple[str, ...] = (), rate: int = RATE) -> Case:
    """Mono files at the extractor's rate, of several lengths."""
    (place / "sounds").mkdir()
    paths = [
        write_wav(place / "sounds" / f"sound {index}.wav", sound(seconds, index, rate), rate)
        for index, seconds in enumerate(_SECONDS)
    ]
    expected = by_audio(folder, [read(path) for path in paths], pick)
    return Case(folder, (Call([str(path) for path in paths], expected),), options)


_TWO_S = ("--max-length", "32000")
ROWS.add("wav2vec2-group-norm-no-mask", lambda place: judged(wav2vec2(place), place, options=_TWO_S))
ROWS.add("wav2vec2-layer-norm-mask", lambda place: judged(wav2vec2(place, _MASKED, **_LAYER), place, options=_TWO_S))
ROWS.add("wav2vec2-group-norm-with-mask", lambda place: judged(wav2vec2(place, _MASKED), place, options=_TWO_S))
ROWS.add("hubert", lambda place: judged(wav2vec2(place, config="HubertConfig"), place, options=_TWO_S))
ROWS.add("wavlm", lambda place: judged(wav2vec2(place, config="WavLMConfig"), place, options=_TWO_S))
ROWS.add(
    "wav2vec2-no-normalize",
    lambda place: judged(wav2vec2(place, {**_EXTRACTOR, "do_normalize": False}), place, options=_TWO_S),
)
ROWS.add(
    "wav2vec2-8-khz",
    lambda place: judged(wav2vec2(place, {**_EXTRACTOR, "sampling_rate": 8000}), place, options=_TWO_S, rate=8000),
)


@ROWS.row("wav2vec2-head-for-ctc")
def _ctc(place: Path) -> Case:
    folder = place / "wav2vec2"
    save_model(folder, "Wav2Vec2Config", _WAVE, "Wav2Vec2ForCTC")
    write_json(folder / "preprocessor_config.json", _EXTRACTOR)
    return judged(folder, place, options=("--pooling", "mean", *_TWO_S))


@ROWS.row("wav2vec2-extractor-inside-processor-config")
def _nested(place: Path) -> Case:
    """transformers 5 writes the parts of a processor into one file."""
    folder = wav2vec2(place, _MASKED, **_LAYER)
    (folder / "preprocessor_config.json").unlink()
    write_json(folder / "processor_config.json", {"processor_class": "Wav2Vec2Processor", "feature_extractor": _MASKED})
    return judged(folder, place, options=_TWO_S)


@ROWS.row("whisper-encoder")
def _whisper(place: Path) -> Case:
    folder = place / "whisper"
    shape = {"d_model": 48, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 88, "vocab_size": 64}
    shape |= {"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 88, "max_source_positions": 50}
    shape |= {"num_mel_bins": 24, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 3}
    save_model(folder, "WhisperConfig", shape)
    how = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 24, "chunk_length": 1}
    write_json(folder / "preprocessor_config.json", {**how, "sampling_rate": RATE, "hop_length": 160, "n_fft": 400})
    return judged(folder, place, "encoder")


def _ast(place: Path, **changes: Any) -> Case:
    folder = place / "ast"
    save_model(folder, "ASTConfig", {**WIDE, "max_length": 64, "num_mel_bins": 32})
    how = {"feature_extractor_type": "ASTFeatureExtractor", "max_length": 64, "num_mel_bins": 32}
    write_json(folder / "preprocessor_config.json", {**how, "sampling_rate": RATE, **changes})
    return judged(folder, place, "pooler_output")


ROWS.add("ast", _ast)
ROWS.add("ast-mean-and-std", lambda place: _ast(place, mean=-6.1, std=3.3, do_normalize=True))
ROWS.add("ast-no-normalize", lambda place: _ast(place, do_normalize=False))


def _clap(place: Path, padding: str, truncation: str) -> Case:
    folder = place / "clap"
    tower = {"spec_size": 64, "num_mel_bins": 16, "patch_embeds_hidden_size": 12, "hidden_size": 24, "depths": [1, 1]}
    tower |= {"num_attention_heads": [2, 4], "window_size": 4, "num_hidden_layers": 2}
    tower |= {"enable_fusion": truncation == "fusion"}
    text = {**WIDE, "vocab_size": 40, "max_position_embeddings": 70}
    save_model(folder, "ClapConfig", {"audio_config": tower, "text_config": text, "projection_dim": 40})
    how = {"feature_extractor_type": "ClapFeatureExtractor", "feature_size": 16, "truncation": truncation}
    how |= {"max_length_s": 2, "hop_length": 480, "padding": padding, "sampling_rate": 48000}
    write_json(folder / "preprocessor_config.json", how)
    return judged(folder, place, "features", ("--tower", "audio"), rate=48000)


ROWS.add("clap-audio-repeatpad", lambda place: _clap(place, "repeatpad", "rand_trunc"))
ROWS.add("clap-audio-pad", lambda place: _clap(place, "pad", "rand_trunc"))
ROWS.add("clap-audio-fusion", lambda place: _clap(place, "repeatpad", "fusion"))


def _files(name: str, write: Callable[[Path], list[Path]]) -> None:
    def make(place: Path) -> Case:
        folder = wav2vec2(place)
        (place / "sounds").mkdir()
        paths = write(place / "sounds")
        calls = tuple(Call([str(path)], by_audio(folder, [read(path)])) for path in paths)
        return Case(folder, calls, _TWO_S)

    ROWS.add(f"file-{name}", make)


def _subtype(name: str, kind: str = "wav") -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        import soundfile

        paths = [folder / f"sound-{index}.{kind}" for index in range(2)]
        for index, path in enumerate(paths):
            soundfile.write(path, sound(0.6 + index / 3, index), RATE, subtype=name)
        return paths

    return write


def _channels(count: int) -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        many = np.stack([sound(0.8, channel) for channel in range(count)], axis=1)
        return [write_wav(folder / "many.wav", many)]

    return write


_files("8-bit", lambda folder: [write_wav(folder / f"{i}.wav", sound(0.6 + i / 3, i), width=1) for i in range(2)])
_files("24-bit", lambda folder: [write_wav(folder / f"{i}.wav", sound(0.6 + i / 3, i), width=3) for i in range(2)])
_files("32-bit", lambda folder: [write_wav(folder / f"{i}.wav", sound(0.6 + i / 3, i), width=4) for i in range(2)])
_files("float", _subtype("FLOAT"))
_files("double", _subtype("DOUBLE"))
_files("mu-law", _subtype("ULAW"))
_files("flac", _subtype("PCM_16", "flac"))
_files("stereo", _channels(2))
_files("six-channels", _channels(6))


@ROWS.row("file-other-rate")
def _other_rate(place: Path) -> Case:
    """The same tones at 44.1 and 8 kHz: refused, or resampled to what they are at 16 kHz."""
    folder = wav2vec2(place)
    (place / "sounds").mkdir()
    calls = []
    for rate in (44100, 8000):
        path = write_wav(place / "sounds" / f"{rate}.wav", sound(1.2, 5, rate), rate)
        expected = by_audio(folder, [sound(1.2, 5).astype(np.float32)])
        calls.append(Call([str(path)], expected, least=_RESAMPLED))
    return Case(folder, tuple(calls), _TWO_S)


@ROWS.row("wav2vec2-sound-longer-than-asked")
def _cut(place: Path) -> Case:
    """Three seconds where the user asked for two: refused, or as the extractor cuts before it normalizes."""
    import torch
    import transformers

    folder = wav2vec2(place)
    (place / "sounds").mkdir()
    path = write_wav(place / "sounds" / "long.wav", sound(3.0, 7))
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    how = {"truncation": True, "max_length": 32000, "padding": "max_length"}
    with torch.inference_mode():
        given = extractor(read(path), sampling_rate=RATE, return_tensors="pt", **how)
        row = model(**given).last_hidden_state[0].mean(dim=0).numpy()
    return Case(folder, (Call([str(path)], row[None]),), _TWO_S)


@ROWS.row("wav2vec2-sound-of-40-s")
def _very_long(place: Path) -> Case:
    folder = wav2vec2(place)
    (place / "sounds").mkdir()
    path = write_wav(place / "sounds" / "long.wav", sound(40.0, 7))
    return Case(folder, (Call([str(path)], by_audio(folder, [read(path)])),))


@ROWS.row("file-10-ms")
def _short(place: Path) -> Case:
    """Shorter than the convolutions reach: transformers itself fails."""
    folder = wav2vec2(place)
    (place / "sounds").mkdir()
    path = write_wav(place / "sounds" / "short.wav", sound(0.003, 1))
    return Case(folder, (Call([str(path)], None),), _TWO_S)


@ROWS.row("file-not-a-sound")
def _no_sound(place: Path) -> Case:
    folder = wav2vec2(place)
    (place / "sounds").mkdir()
    path = place / "sounds" / "page.wav"
    path.write_text("<html>404</html>", encoding="utf-8")
    return Case(folder, (Call([str(path)], None),), _TWO_S)
