import dataclasses
import json
from html.parser import HTMLParser

import example_manifest as example
import pytest

from deploykit import report
from deploykit.report import html, markdown, model, terminal
from deploykit.runtime.manifest import TensorSpec

HOSTILE = "<script>alert('x')</script> | [a](javascript:b) \x1b[31m`"


@pytest.fixture
def rows():
    return model.from_manifest(example.manifest(), "minilm.bundle")


class Elements(HTMLParser):
    """Collects tags, attributes and visible text; complains about tags that are not closed in order."""

    VOID = ("meta", "rect")
    OPTIONAL = ("th", "tr")

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID + self.OPTIONAL:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID + self.OPTIONAL:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


FORMS = {
    "html": lambda rows: " ".join(Elements(html.render(rows)).text),
    "markdown": markdown.render,
    "terminal": terminal.render,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "fact",
    [
        *("openvino-bf16", "0.9998", "batch 5, length 32", "4.0e-04", "42"),
        *("45.4 MB", "3f9c21ab", "1.72", "[1.69, 1.79]", "640"),
        *("98 of 104 operations run in bf16", "cosine 0.82000", "axis 'length' decides"),
        *("weights are stored in fp16", "as proven: threads 2"),
    ],
)
def test_every_form_says_everything(rows, form, fact):
    text = FORMS[form](rows).replace("\\", "")
    if form == "markdown" and fact.startswith("["):
        fact = "1.69 to 1.79"
    assert fact in " ".join(text.split())


def test_the_html_is_whole_and_loads_nothing(rows):
    page = html.render(rows)
    elements = Elements(page)
    assert elements.open == []
    assert "script" not in elements.tags
    assert not [v for k, v in elements.attributes if k in ("src", "href")]
    assert "url(" not in page
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page


def test_bars_are_described_for_those_who_cannot_see_them(rows):
    page = html.render(rows)
    assert page.count('role="img"') == page.count("<title>") - 1 == 3 + 6
    assert 'aria-label="1.72 ms [1.69, 1.79]' in page


def test_hostile_text_stays_text():
    manifest = example.manifest(name=HOSTILE)
    rows = model.from_manifest(manifest, HOSTILE)
    page = html.render(rows)
    assert "<script" not in page
    assert "\x1b" not in page + markdown.render(rows) + terminal.render(rows)
    assert "<script>" not in markdown.render(rows).partition("```python")[0].replace("\\<", "")
    assert "](javascript" not in markdown.render(rows).replace("\\]\\(", "").partition("```python")[0].replace(
        "\\]", ""
    )


def test_a_cell_cannot_leave_its_table():
    assert markdown.escape("a | b\nc") == "a \\| b c"


def test_without_refusals_nothing_is_said_of_them():
    rows = model.from_manifest(example.manifest(refused=False), "b")
    for text in (html.render(rows), markdown.render(rows), terminal.render(rows)):
        assert "refused" not in text.lower()


def test_a_variant_without_proof_and_latency_says_so():
    manifest = example.manifest()
    bare = dataclasses.replace(manifest.variants[0], proof={}, latency={}, audit={})
    rows = model.from_manifest(dataclasses.replace(manifest, variants=(bare,), default=""), "b")
    for text in (html.render(rows), markdown.render(rows), terminal.render(rows)):
        assert "not proven" in text
        assert "p50" not in text.replace("p50_ms", "")


def test_infinite_and_absent_figures_do_not_break_a_report():
    manifest = example.manifest()
    row = {"p50_ms": 1.0, "low_ms": float("-inf"), "high_ms": float("inf"), "blocks": 1, "calls": 1, "shape": [1]}
    latency = {"hardware": "x", "single": row}
    proof = {"cosine_min": float("nan"), "cases": 1}
    odd = dataclasses.replace(manifest.variants[0], latency=latency, proof=proof)
    rows = model.from_manifest(dataclasses.replace(manifest, variants=(odd,), default=""), "b")
    assert Elements(html.render(rows)).open == []
    assert "nan" in markdown.render(rows)
    assert terminal.render(rows)


def test_the_size_of_a_variant_counts_its_weights_file(rows):
    assert [v.size for v in rows.variants] == [90_400_000, 90_400_000, 45_400_000]


def test_the_fastest_is_found_per_workload(rows):
    assert rows.fastest("single")[0].name == "openvino-bf16"
    assert rows.fastest("no such") is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1.00000000"), (0.9999998, "0.9999998"), (0.98765432, "0.9877"), (-0.2, "-0.2000")],
)
def test_a_cosine_below_one_is_never_shown_as_one(value, text):
    assert model.cosine_text(value) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (90_400_000, "90.4 MB")])
def test_sizes_are_decimal(count, text):
    assert model.size_text(count) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (0.01234, "0.0123"), (2.345, "2.35"), (1234.5, "1,234")])
def test_numbers_have_three_digits(value, text):
    assert model.number(value) == text


def test_terminal_lines_keep_to_the_width(rows):
    assert max(map(len, terminal.render(rows, 80).splitlines())) <= 80


def test_writing_puts_three_files_beside_the_bundle(tmp_path):
    page = report.write(example.manifest(), tmp_path / "minilm.bundle")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"minilm.report.{form}" for form in ("html", "json", "md")]
    assert page == tmp_path / "minilm.report.html"
    data = json.loads((tmp_path / "minilm.report.json").read_text())
    assert data["schema"] == "deploykit.report/1"
    assert data["refused"][0]["variant"] == "openvino-int8"
    assert data["bundle"]["bytes"] == 226_200_000


def test_the_usage_fits_the_modality():
    manifest = example.manifest()
    card = dataclasses.replace(manifest.card, modality="image")
    assert 'encode(["photo.jpg"])' in model.usage(dataclasses.replace(manifest, card=card), "b")


def test_prompts_and_further_outputs_are_told():
    manifest = example.manifest()
    more = (*manifest.card.outputs, TensorSpec("token_embeddings", "float32", ("batch", "length", 6)))
    preprocess = {**manifest.card.preprocess, "prompts": {"query": "query: ", "passage": ""}}
    card = dataclasses.replace(manifest.card, outputs=more, preprocess=preprocess)
    text = terminal.render(model.from_manifest(dataclasses.replace(manifest, card=card), "minilm.bundle"))
    assert f"{manifest.card.embedding.output}, token_embeddings" in text
    assert "passage, query" in text
