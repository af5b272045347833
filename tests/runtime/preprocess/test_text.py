from dataclasses import replace

import numpy as np
import pytest

from deploykit.runtime.errors import BundleError, InputError
from deploykit.runtime.manifest import Limits, TensorSpec
from deploykit.runtime.preprocess import open_preprocessor
from tests.runtime import made

pytest.importorskip("tokenizers")


@pytest.fixture
def opened(tmp_path):
    """Opens the text preprocessor with options, and other inputs or limits of the card."""
    made.save_tokenizer(tmp_path / "preprocess" / "tokenizer.json")

    def open_it(names=("input_ids", "attention_mask"), limits=None, dtype="int64", **options):
        inputs = tuple(TensorSpec(name, dtype, ("batch", "length")) for name in names)
        card = replace(made.card(**options), inputs=inputs, limits=limits or made.card().limits)
        return open_preprocessor(card, tmp_path)

    return open_it


def feeds_of(preprocessor, texts, **options):
    return preprocessor.collate(preprocessor.items(texts, **options))


def ids(words):
    return [made.WORDS.index(word) for word in words.split()]


def test_a_batch_is_as_wide_as_its_longest_text(opened):
    feeds = feeds_of(opened(), ["w1", "w1 w2 w3"])
    assert feeds["input_ids"].tolist() == [ids("[CLS] w1 [SEP] [PAD] [PAD]"), ids("[CLS] w1 w2 w3 [SEP]")]
    assert feeds["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert feeds["input_ids"].dtype == np.int64


def test_the_cost_is_the_number_of_tokens(opened):
    assert [item.cost for item in opened().items(["", "w1 w2"])] == [2, 4]


def test_padding_may_go_to_the_left(opened):
    feeds = feeds_of(opened(padding_side="left", pad_id=1), ["w1", "w1 w2"])
    assert feeds["input_ids"].tolist() == [ids("[UNK] [CLS] w1 [SEP]"), ids("[CLS] w1 w2 [SEP]")]
    assert feeds["attention_mask"].tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]


def test_long_texts_are_cut_to_the_maximum_with_their_special_tokens(opened):
    feeds = feeds_of(opened(max_length=4), ["w1 w2 w3 w4 w5"])
    assert feeds["input_ids"].tolist() == [ids("[CLS] w1 w2 [SEP]")]


def test_the_cut_may_be_at_the_start(opened):
    feeds = feeds_of(opened(max_length=4, truncation_side="left"), ["w1 w2 w3 w4 w5"])
    assert feeds["input_ids"].tolist() == [ids("[CLS] w4 w5 [SEP]")]


def test_the_proven_length_bounds_the_maximum(opened):
    feeds = feeds_of(opened(limits=Limits({"length": (1, 3)})), ["w1 w2 w3"])
    assert feeds["input_ids"].shape == (1, 3)


def test_short_texts_are_padded_to_the_smallest_proven_length(opened):
    feeds = feeds_of(opened(limits=Limits({"length": (7, 32)})), ["w1"])
    assert feeds["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0]]


def test_without_a_mask_too_only_the_shortest_texts_are_filled_up(opened):
    preprocessor = opened(names=("input_ids",), limits=Limits({"length": (3, 32)}))
    assert feeds_of(preprocessor, [""])["input_ids"].tolist() == [ids("[CLS] [SEP] [PAD]")]
    assert feeds_of(preprocessor, ["w1 w2"])["input_ids"].tolist() == [ids("[CLS] w1 w2 [SEP]")]


def test_only_the_inputs_of_the_card_are_made(opened):
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    feeds = feeds_of(opened(names, pad_type_id=3), ["w1", "w1 w2"])
    assert set(feeds) == set(names)
    assert feeds["token_type_ids"].tolist() == [[0, 0, 0, 3], [0, 0, 0, 0]]
    assert feeds["position_ids"].tolist() == [[0, 1, 2, 2], [0, 1, 2, 3]]


def test_positions_start_at_the_first_token_when_padding_is_left(opened):
    feeds = feeds_of(opened(("input_ids", "position_ids", "attention_mask"), padding_side="left"), ["w1", "w1 w2"])
    assert feeds["position_ids"].tolist() == [[0, 0, 1, 2], [0, 1, 2, 3]]


def test_the_type_of_the_card_is_kept(opened):
    feeds = feeds_of(opened(dtype="int32"), ["w1", "w2 w3"])
    assert {array.dtype for array in feeds.values()} == {np.dtype("int32")}


def test_types_of_the_template_are_kept(tmp_path):
    from tokenizers import Tokenizer, processors

    path = made.save_tokenizer(tmp_path / "preprocess" / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(path))
    template = processors.TemplateProcessing(single="$A:0 [SEP]:0 [CLS]:2", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.post_processor = template
    tokenizer.save(str(path))
    card = made.card(padding_side="left", pad_type_id=3)
    inputs = tuple(replace(card.inputs[0], name=name) for name in ("input_ids", "attention_mask", "token_type_ids"))
    feeds = feeds_of(open_preprocessor(replace(card, inputs=inputs), tmp_path), ["w1", "w1 w2"])
    assert feeds["token_type_ids"].tolist() == [[3, 0, 0, 2], [0, 0, 0, 2]]


def test_wide_batches_are_rounded_up_where_a_mask_marks_padding(opened):
    texts = ["w1 " * 70, "w1"]
    assert feeds_of(opened(), texts)["input_ids"].shape == (2, 80)
    assert feeds_of(opened(max_length=75), texts)["input_ids"].shape == (2, 75)
    assert feeds_of(opened(max_length=72), texts)["input_ids"].shape == (2, 72)
    assert feeds_of(opened(), texts[:1])["input_ids"].shape == (1, 72)
    assert feeds_of(opened(("input_ids",)), texts[:1])["input_ids"].shape == (1, 72)


def test_prompts_are_put_before_the_text(opened):
    preprocessor = opened(prompts={"query": "query : ", "passage": ""}, default_prompt=None)
    assert feeds_of(preprocessor, ["w1"], kind="query")["input_ids"].tolist() == [ids("[CLS] query : w1 [SEP]")]
    assert feeds_of(preprocessor, ["w1"], kind="passage")["input_ids"].tolist() == [ids("[CLS] w1 [SEP]")]
    assert feeds_of(preprocessor, ["w1"])["input_ids"].tolist() == [ids("[CLS] w1 [SEP]")]


def test_the_default_prompt_is_used_without_a_kind(opened):
    preprocessor = opened(prompts={"query": "query : "}, default_prompt="query")
    assert feeds_of(preprocessor, [""])["input_ids"].tolist() == [ids("[CLS] query : [SEP]")]


def test_an_unknown_kind_names_the_nearest(opened):
    with pytest.raises(InputError, match="did you mean 'query'"):
        opened(prompts={"query": "query : "}).items(["w1"], kind="querry")
    with pytest.raises(InputError, match="leave kind out"):
        opened().items(["w1"], kind="query")


def test_lowercase_and_strip_come_before_the_tokenizer(opened):
    assert feeds_of(opened(lowercase=True), ["W1"])["input_ids"].tolist() == [ids("[CLS] w1 [SEP]")]
    assert feeds_of(opened(), ["W1"])["input_ids"].tolist() == [ids("[CLS] [UNK] [SEP]")]
    assert feeds_of(opened(strip=True), [" w1 "])["input_ids"].tolist() == [ids("[CLS] w1 [SEP]")]


def test_a_text_without_any_token_is_named(tmp_path):
    from tokenizers import Tokenizer, models

    (tmp_path / "preprocess").mkdir()
    Tokenizer(models.WordLevel({"w1": 0}, unk_token="w1")).save(str(tmp_path / "preprocess" / "tokenizer.json"))
    with pytest.raises(InputError, match="input 1 gives no tokens"):
        open_preprocessor(made.card(), tmp_path).items(["w1", ""])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_lenght": 3}, "unknown key 'max_lenght'"),
        ({"max_length": 0}, "max_length 0"),
        ({"max_length": "8"}, "must be int"),
        ({"padding_side": "top"}, "padding_side is 'top'"),
        ({"default_prompt": "query"}, "no such prompt"),
        ({"tokenizer": "/etc/passwd"}, "tokenizer '/etc/passwd'"),
        ({"tokenizer": "preprocess/../../x"}, "leaves its folder"),
        ({"tokenizer": "preprocess/absent.json"}, "cannot be read"),
    ],
)
def test_wrong_options_are_refused(opened, options, reason):
    with pytest.raises(BundleError, match=reason):
        opened(**options)


def test_inputs_that_no_text_gives_are_refused(opened):
    with pytest.raises(BundleError, match="pixel_values"):
        opened(("input_ids", "pixel_values"))


def test_a_frame_stands_around_a_text_and_ends_one_that_was_cut(opened):
    ending = ids("w9 [SEP]")
    frames = {"": {"before": "w1 ", "after": " w9", "ending": ending}, "query": {"before": "w2 ", "after": " w9"}}
    preprocessor = opened(frames=frames, prompts={"query": "w2"}, strip=True, max_length=6)
    assert feeds_of(preprocessor, [" w3 "])["input_ids"].tolist() == [ids("[CLS] w1 w3 w9 [SEP]")]
    assert feeds_of(preprocessor, ["w3 w4 w5 w6"])["input_ids"].tolist() == [ids("[CLS] w1 w3 w4 w9 [SEP]")]
    query = feeds_of(preprocessor, ["w3 w4 w5 w6"], kind="query")["input_ids"].tolist()
    assert query == [ids("[CLS] w2 w3 w4 w5 [SEP]")]


def test_a_prompt_without_a_frame_is_refused(opened):
    with pytest.raises(BundleError, match="lacks a prompt's frame"):
        opened(frames={"": {"before": "", "after": ""}}, prompts={"query": "w2"})


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_tokens_of_a_prompt_are_left_out_of_the_pooling(opened, side):
    names = ("input_ids", "attention_mask", "pooling_mask")
    preprocessor = opened(names, prompts={"query": "w1 w2 "}, prompt_tokens={"query": 3}, padding_side=side)
    pooled = feeds_of(preprocessor, ["w3 w4", "w3"], kind="query")["pooling_mask"].tolist()
    want = [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0] if side == "right" else [0, 0, 0, 0, 1, 1]]
    assert pooled == want
    assert feeds_of(preprocessor, ["w3 w4"])["pooling_mask"].tolist() == [[1, 1, 1, 1]]
