"""Small recipes and data for the tests of pretraining."""

import json
import os
import wave

import numpy as np

from deploykit.pretrain.recipe import PretrainRecipe

# On CPUs with AVX2 alone OpenVINO 2026.4 dies of this encoder 24 wide; 16 and 32 wide it runs.
TINY = {"transformer": {"width": 32, "depth": 1, "heads": 4, "dropout": 0.1}, "cnn": {"width": 4, "stages": 2}}
TINY["resnet"] = {"width": 8, "blocks": [1, 1]}
OBJECTIVES = {"match": {"hidden": 16, "out": 8}, "predict": {"width": 16, "depth": 1}}
OBJECTIVES["adversarial"] = {"width": 16, "depth": 1, "heads": 2}
MODALITIES = {
    "image": {"size": 8, "channels": "gray", "patch": 4, "flip": False},
    "audio": {"rate": 8000, "seconds": 0.3, "bins": 16, "hop": 128, "window": 256, "patch": 8},
    "text": {"length": 12, "vocabulary": 300, "span": 0.6},
}


def recipe(output, data, /, *, modality="image", objective="match", encoder="cnn", skip=0.01, **sections):
    """A recipe of few and small steps; ``sections`` add keys to its sections."""
    table = {
        "output": str(output),
        "objective": {"name": objective, **OBJECTIVES[objective]},
        "encoder": {"name": encoder, **TINY[encoder]},
        "modality": {"name": modality, **MODALITIES[modality]},
        "data": {"train": [str(data)], "holdout": 0.25, "unreadable": skip},
        "training": {"steps": 4, "batch": 16, "device": "cpu", "log_every": 1, "save_every": 2},
        "probe": {"rank_alarm": 1.1},
    }
    for name, keys in sections.items():
        table[name] = {**table[name], **keys}
    return PretrainRecipe.from_data(table)


def losses(folder):
    """Loss by step, as the metrics say."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def pictures(folder, count=48):
    """A folder of grey squares, bright on the left or on the right: two classes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(count):
        side = ("left", "right")[i % 2]
        pixels = rng.integers(0, 90, (8, 8), dtype=np.uint8)
        pixels[:, :4] += np.uint8(150 if side == "left" else 0)
        pixels[:, 4:] += np.uint8(150 if side == "right" else 0)
        (folder / side).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / side / f"{i}.png")
    return folder


def sounds(folder, count=32):
    """A folder of wavs, low and high tones: two classes."""
    rng = np.random.default_rng(0)
    time = np.arange(2400) / 8000
    for i in range(count):
        name = ("low", "high")[i % 2]
        tone = 0.4 * np.sin(2 * np.pi * (300 if name == "low" else 1500) * rng.uniform(0.9, 1.1) * time)
        (folder / name).mkdir(parents=True, exist_ok=True)
        with wave.open(str(folder / name / f"{i}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes((tone * 32767).astype("<i2").tobytes())
    return folder


def texts(path, count=60):
    """A csv of sentences of two kinds, with labels."""
    rng = np.random.default_rng(0)
    words = {"sea": ["ship", "wave", "sail", "harbour", "storm"], "farm": ["cow", "field", "barn", "harvest", "plough"]}
    rows = ["text,label"]
    for i in range(count):
        kind = ("sea", "farm")[i % 2]
        rows.append(f"the {' '.join(rng.choice(words[kind], size=int(rng.integers(2, 7))))} is here,{kind}")
    path.write_text("\n".join(rows) + "\n")
    return path


def data_for(modality, folder):
    """Data of a modality below ``folder``."""
    if modality == "text":
        return texts(folder / "texts.csv")
    return (pictures if modality == "image" else sounds)(folder / modality)


def one_thread():
    """The environment of a child process that shall not take the whole machine."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def resumable(output, data, encoder="transformer"):
    """A run with everything that has a state: dropout, averaged weights, momentum, an order of the data."""
    return recipe(
        output,
        data,
        objective="adversarial" if encoder == "transformer" else "match",
        encoder=encoder,
        training={"steps": 26, "batch": 12, "ema": 0.9, "save_every": 3, "accumulate": 2},
    )


def spread(output, data, encoder="transformer"):
    """A run whose weights are spread over its processes, without dropout: that is drawn by each process."""
    table = recipe(output, data, encoder=encoder).to_data()
    table["encoder"] |= {"dropout": 0.0} if encoder == "transformer" else {}
    table["training"] |= {"shard": True, "ema": 0.5, "steps": 6}
    table["probe"] = {"every": 2, "rank_alarm": 0.0}
    return PretrainRecipe.from_data(table)
