// Texts to vectors with a bundle's ONNX model: one text a line in, one vector a line out.
//
//   node embed.mjs BUNDLE TEXTS.txt [VARIANT]
//
// VARIANT is one for onnxruntime; without it the portable model runs, which every bundle holds.

import { readFileSync } from "node:fs";
import { join } from "node:path";

let ort, tokenizers; // loaded in main: a package that is missing is said in a sentence

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

function manifestOf(bundle) {
  try {
    return JSON.parse(readFileSync(join(bundle, "manifest.json"), "utf8"));
  } catch (error) {
    throw new Error(`'${bundle}' is no bundle folder: its manifest.json cannot be read (${error.message})`);
  }
}

class Encoder {
  static async open(bundle, name) {
    const { card, variants } = manifestOf(bundle);
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

async function main([bundle, texts, name]) {
  ({ default: ort } = await import("onnxruntime-node"));
  ({ default: tokenizers } = await import("tokenizers"));
  const encoder = await Encoder.open(bundle, name);
  for (const text of readFileSync(texts, "utf8").replace(/\n$/, "").split("\n")) {
    console.log(Array.from(await encoder.encode(text)).join(" "));
  }
}

if (process.argv.length < 4) {
  console.error("usage: node embed.mjs BUNDLE TEXTS.txt [VARIANT]");
  process.exit(2);
}
try {
  await main(process.argv.slice(2));
} catch (error) {
  const missing = error.code === "ERR_MODULE_NOT_FOUND" ? " → npm install, beside package.json" : "";
  console.error(`error: ${String(error.message).split("\n")[0]}${missing}`);
  process.exit(1);
}
