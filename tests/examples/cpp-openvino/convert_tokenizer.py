"""A text bundle's tokenizer as an OpenVINO model: ``python convert_tokenizer.py BUNDLE TOKENIZER.xml``.

Done once where the bundle is made; needs openvino-tokenizers and transformers. The device needs neither: there the
model and the library of operators, whose path is printed, are enough.
"""

import json
import sys
from pathlib import Path

import openvino
import openvino_tokenizers
from transformers import PreTrainedTokenizerFast


def convert(bundle: Path, output: Path) -> None:
    card = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["card"]
    options = card["preprocess"]
    if options.get("frames"):
        raise SystemExit("the bundle has a chat template, which this example does not apply")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(bundle / options["tokenizer"]),
        padding_side=options.get("padding_side", "right"),
        truncation_side=options.get("truncation_side", "right"),
    )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(options.get("pad_id", 0))
    longest = min([options["max_length"], *card["limits"]["axes"].get("length", [])[1:]])
    openvino.save_model(openvino_tokenizers.convert_tokenizer(tokenizer, truncation=True, max_length=longest), output)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
    print(openvino_tokenizers._ext_path)
