"""The token ids of texts, for a program that has no tokenizer: ``python tokens.py BUNDLE TEXTS.txt TOKENS.bin``.

Needs tokenizers. For each line of TEXTS: an int64 with the number of its tokens, then that many int64 token ids.
"""

import json
import struct
import sys
from pathlib import Path

from tokenizers import Tokenizer


def write_tokens(bundle: Path, texts: Path, output: Path) -> None:
    card = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["card"]
    options = card["preprocess"]
    if options.get("frames"):
        raise SystemExit("the bundle has a chat template, which this example does not apply")
    tokenizer = Tokenizer.from_file(str(bundle / options["tokenizer"]))
    tokenizer.no_padding()
    longest = min([options["max_length"], *card["limits"]["axes"].get("length", [])[1:]])
    tokenizer.enable_truncation(longest, direction=options.get("truncation_side", "right"))
    with output.open("wb") as file:
        for text in texts.read_text(encoding="utf-8").removesuffix("\n").split("\n"):
            ids = tokenizer.encode(text).ids
            file.write(struct.pack(f"={len(ids) + 1}q", len(ids), *ids))


if __name__ == "__main__":
    write_tokens(*map(Path, sys.argv[1:4]))
