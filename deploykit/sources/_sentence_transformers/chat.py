"""Chat templates: what a template puts around every text, so that a bundle needs no template engine.

A template is a program, and it is run here on texts that would show what else it does with them. One that only frames a
text, stripped or as it is, is carried as that frame; any other is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deploykit.errors import SourceError
from deploykit.sources._checkpoint import first_line
from deploykit.sources._sentence_transformers.settings import Settings

_FLAT_KINDS = ("apertus", "deepseek_v3", "gpt_oss", "seed_oss")
"""Model types whose templates take plain strings, though they look otherwise."""

_STRUCTURED = ("content[0]", ".type", "'type'", '"type"', "message.content[")
"""What a template holds that reads a message's content as a list of typed parts."""

_MARK = "deploykitmark"
_PROBES = (
    "a",
    "  a b\t",
    "\n\nx\n",
    "A 'b' \"c\" & <d> {{ e }} {% f %}",
    "é 漢字 😀",
    "<|im_end|>\n[SEP]</s>",
    "a\n\nb",
    "",
)
_FILLERS = ("0", "1 2 3 4")
"""Contents that tokenize differently: the tokens that both texts end with are the template's."""


def frames(tokenizer: Any, settings: Settings, prompts: Mapping[str, str], model_type: str) -> dict[str, Any]:
    """Keys of a text's preprocessing: ``frames`` by the prompt's name ("" without one), and ``strip``.

    A prompt is a system message there. Raises `SourceError` if the template does more than framing a text.
    """
    template = tokenizer.chat_template
    if not isinstance(template, str):
        hint = "its folder needs one template: chat_template.jinja, or chat_template in tokenizer_config.json"
        raise SourceError(f"{settings.path} wraps texts in a chat template, and there is none", hint=hint)
    if "strftime" in template:
        hint = "its vectors change from day to day: save the folder with a template that does not"
        raise SourceError(f"the chat template of {settings.path.parent} writes the date", hint=hint)
    style = settings.ways["message"].style
    if style == "auto":
        structured = model_type not in _FLAT_KINDS and any(part in template for part in _STRUCTURED)
        style = "structured" if structured else "flat"
    arguments = dict(settings.calls.template)
    restored = arguments.pop("restore_suffix", True) and settings.calls.cut

    def rendered(prompt: str, text: str) -> str:
        messages = [_message("system", prompt, style)] if prompt else []
        return _render(tokenizer, settings, [*messages, _message("user", text, style)], arguments)

    strip = rendered("", f" {_MARK} ") == rendered("", _MARK)
    found = {}
    for name, prompt in {"": "", **prompts}.items():
        before, _, after = rendered(prompt, _MARK).partition(_MARK)
        for probe in _PROBES:
            if rendered(prompt, probe) != before + (probe.strip() if strip else probe) + after:
                hint = f"it alters the text {probe!r}: wrap the model in a Python factory, py:package.module:factory"
                raise SourceError(f"the chat template of {settings.path.parent} does more than framing", hint=hint)
        ending = _ending(tokenizer, [rendered(prompt, filler) for filler in _FILLERS]) if restored else []
        found[name] = {"before": before, "after": after, "ending": ending}
    return {"frames": found, "strip": strip}


def _message(role: str, text: str, style: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}] if style == "structured" else text}


def _render(
    tokenizer: Any, settings: Settings, messages: Sequence[Mapping[str, Any]], arguments: dict[str, Any]
) -> str:
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, **arguments)
    except Exception as error:  # a template raises whatever it likes
        hint = "leave out the prompt that it cannot take, if there is one"
        raise SourceError(
            f"the chat template of {settings.path.parent} fails: {first_line(error)}", hint=hint
        ) from error
    return str(text)


def _ending(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """The tokens that the texts end with alike: put back where a long text was cut. None if they never differ."""
    one, other = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    same = 0
    for left, right in zip(reversed(one), reversed(other), strict=False):
        if left != right:
            break
        same += 1
    return [int(i) for i in one[len(one) - same :]] if 0 < same < min(len(one), len(other)) else []
