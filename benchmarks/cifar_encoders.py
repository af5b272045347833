"""Trains a small ResNet and a small ViT on CIFAR-10, so that quantized image encoders can be judged on real features.

    python benchmarks/cifar_encoders.py --data DIR --output DIR

DIR/train.parquet holds the columns ``img`` (struct with encoded ``bytes``) and ``label``. Needs torch, transformers,
pillow and pyarrow. Each model is saved as a transformers folder with its image processor, ready for
``deploykit export``.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def read(path: Path, count: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 [n, 3, 32, 32] and labels int64 [n]; ``count`` of them at random, as files are sorted by class."""
    import pyarrow.parquet as parquet
    from PIL import Image

    table = parquet.read_table(path, columns=["img", "label"])
    table = table.take(np.random.default_rng(0).permutation(len(table))[:count])
    pictures = [np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in table["img"].to_pylist()]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), torch.tensor(
        table["label"].to_pylist()
    )


def make(kind: str) -> torch.nn.Module:
    """A classifier of transformers with ten classes for images of 32 x 32."""
    from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

    if kind == "resnet":
        config = ResNetConfig(
            embedding_size=32, hidden_sizes=[32, 64, 128], depths=[2, 2, 2], layer_type="basic", num_labels=10
        )
        return ResNetForImageClassification(config)
    sizes = {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 512}
    return ViTForImageClassification(ViTConfig(image_size=32, patch_size=4, num_labels=10, **sizes))


def augment(images: torch.Tensor) -> torch.Tensor:
    """Random shift by up to four pixels and flip, one draw per image; normalised floats."""
    n = len(images)
    padded = functional.pad(images.float() / 255, (4, 4, 4, 4), mode="reflect")
    rows = torch.randint(0, 9, (n, 1)) + torch.arange(32)
    columns = torch.randint(0, 9, (n, 1)) + torch.arange(32)
    flipped = torch.rand(n) < 0.5
    columns[flipped] = columns[flipped].flip(1)
    cut = padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return (cut - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def train(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, peak: float) -> None:
    """AdamW, one cycle, bf16 autocast."""
    batch = 128
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.2)
    started, seen = time.perf_counter(), 0
    for epoch in range(epochs):
        for rows in torch.randperm(len(images))[: len(images) // batch * batch].split(batch):
            with torch.autocast("cpu", torch.bfloat16):
                loss = functional.cross_entropy(model(pixel_values=augment(images[rows])).logits.float(), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            seen += batch
        print(
            f"epoch {epoch + 1}: loss {loss.item():.3f}, {seen / (time.perf_counter() - started):.0f} images/s",
            flush=True,
        )


def main() -> None:
    """Train and save both."""
    from transformers import ViTImageProcessor

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, default=None, help="use N training images instead of all")
    parser.add_argument("--only", choices=("resnet", "vit"), default=None)
    arguments = parser.parse_args()
    images, labels = read(arguments.data / "train.parquet", arguments.images)
    for kind, peak in (("resnet", 4e-3), ("vit", 1e-3)):
        if arguments.only not in (None, kind):
            continue
        torch.manual_seed(0)
        model = make(kind).train()
        train(model, images, labels, arguments.epochs, peak)
        model.eval().save_pretrained(arguments.output / kind)
        processor = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=list(MEAN), image_std=list(STD))
        processor.save_pretrained(arguments.output / kind)


if __name__ == "__main__":
    main()
