// Texts to vectors with a bundle's ONNX model: one text a line in, one vector a line out.
//
//   node embed.mjs BUNDLE TEXTS.txt [VARIANT]
//
// VARIANT is one for onnxruntime; without it the portable model runs, which every bundle holds.

import { readFileSync } from "node:fs";
import { join } from "node:path";

import ort from "onnxruntime-node";
import tokenizers from "tokenizers";

// {"a.b": 1} as {a: {b: 1}}, the form in which onnxruntime-node takes a session's configuration.
function nested(config) {
  const found = {};
  for (const [key, value] of Object.entries(config)) {
    const parts = key.split(".");
    const last = parts.pop();
    parts.reduce((inner, part) => (inner[part] ??= {}), found)[last] = value;
  }
  return found;
}

class Encoder {
  static async open(bundle, name) {
    const { card, variants } = JSON.parse(readFileSync(join(bundle, "manifest.json"), "utf8"));
    const portable = { name, target: "onnxruntime", path: "models/fp32.onnx" };
    const variant = name ? variants.find((entry) => entry.name === name) : portable;
    if (variant?.target !== "onnxruntime") throw new Error(`the bundle has no variant '${name}' for onnxruntime`);
    const options = card.preprocess;
    if (options.frames) throw new Error("the bundle has a chat template, which this example does not apply");
    const tokenizer = tokenizers.Tokenizer.fromFile(join(bundle, options.tokenizer));
    tokenizer.disablePadding(); // the file may bring padding and truncation of its own
    const longest = Math.min(options.max_length, ...(card.limits.axes.length ?? []).slice(1));
    tokenizer.setTruncation(longest, { direction: options.truncation_side ?? "right" });
    const session = await ort.InferenceSession.create(join(bundle, variant.path), {
      extra: nested(variant.settings?.config ?? {}),
    });
    return Object.assign(new Encoder(), { tokenizer, session, output: card.embedding.output });
  }

  // The vector of one text, a Float32Array. Alone in its batch, a text needs no padding.
  async encode(text) {
    const encoding = await this.tokenizer.encode(text);
    const columns = {
      input_ids: encoding.getIds(),
      attention_mask: encoding.getAttentionMask(),
      token_type_ids: encoding.getTypeIds(),
    };
    const feeds = {};
    for (const name of this.session.inputNames) {
      const values = BigInt64Array.from(columns[name], BigInt);
      feeds[name] = new ort.Tensor("int64", values, [1, values.length]);
    }
    const outputs = await this.session.run(feeds);
    return outputs[this.output].data;
  }
}

const [bundle, texts, name] = process.argv.slice(2);
if (!texts) {
  console.error("usage: node embed.mjs BUNDLE TEXTS.txt [VARIANT]");
  process.exit(2);
}
const encoder = await Encoder.open(bundle, name);
for (const text of readFileSync(texts, "utf8").replace(/\n$/, "").split("\n")) {
  console.log(Array.from(await encoder.encode(text)).join(" "));
}
