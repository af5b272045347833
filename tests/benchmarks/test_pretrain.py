"""The benchmark of the pretraining recipes: its judgement of int8, its recipes and its page."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import pretrain, pretrain_page
from deploykit.pretrain.recipe import PretrainRecipe


@pytest.mark.parametrize("name", pretrain.EXPERIMENTS)
def test_every_experiment_is_a_recipe_with_keys_that_it_has(name, pytestconfig):
    experiment = pretrain.EXPERIMENTS[name]
    path = pytestconfig.rootpath / "recipes" / f"{experiment.recipe}.toml"
    changes = [change.replace("DATA", "/data").replace("OUT", "/runs") for change in experiment.changes]
    recipe = PretrainRecipe.from_toml(path, changes)
    assert all(spec.startswith(("/data/", "builtin:")) for spec in recipe.data.train)
    assert bool(recipe.finetune.epochs) is experiment.supervised


def test_int8_is_judged_by_the_probe_of_the_fp32_vectors():
    rng = np.random.default_rng(0)
    labels = [str(i % 2) for i in range(80)]
    vectors = (rng.normal(size=(80, 4)) + 6 * (np.arange(80)[:, None] % 2)).astype(np.float32)
    learnt, asked = vectors[:40], vectors[40:]
    wrong = asked.copy()
    wrong[:10] = asked[1:11]  # ten rows of the other class
    sets = {"onnxruntime-fp32": (learnt, asked), "onnxruntime-int8": (wrong, wrong)}
    bank = SimpleNamespace(labels=labels[:40], pairs=(), inputs=labels[:40])
    query = SimpleNamespace(labels=labels[40:], pairs=(), inputs=labels[40:])
    found = pretrain.judged(sets, bank, query)
    assert found == {"onnxruntime-int8": {"fp32": 100.0, "int8": 75.0, "n": 40}}


def test_scored_pairs_are_judged_by_their_correlation():
    angles = np.radians([0, 10, 0, 40, 0, 80])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    turned = vectors[[0, 5, 2, 3, 4, 1]]
    query = SimpleNamespace(labels=None, pairs=((0, 1, 5.0), (2, 3, 3.0), (4, 5, 1.0)), inputs=[])
    sets = {"openvino-fp32": (vectors, vectors), "openvino-int8": (turned, turned)}
    assert pretrain.judged(sets, query, query) == {"openvino-int8": {"fp32": 100.0, "int8": -100.0, "n": 3}}


def row(name, **facts):
    test = {"knn": 60.0, "linear": 65.0, "n": 1000}
    probes = {who: {"held_out": {}, "test": test} for who in ("trained", "random initialisation", "raw input")}
    common = {
        "name": name,
        "recipe": "pretrain-x",
        "machine": {"cpu": "A CPU", "cores": 2, "id": "abcdefgh"},
        "supervised": False,
        "probes": probes,
        "told": [],
        "data_wait": 0.01,
    }
    return {**common, "training": {"steps": 1100}, "seconds": 400.0, "cpu_seconds": 780.0, "finetuned": {}, **facts}


def test_the_page_holds_every_figure():
    pairs = {
        who: {"held_out": {}, "test": {"spearman": 57.5, "n": 1500}} for who in ("trained", "random initialisation")
    }
    pairs |= {"raw input": pairs["trained"], "start": {"held_out": {}, "test": {"spearman": 51.25, "n": 1500}}}
    labels = {"random initialisation": {"steps": 1850, "test": {"accuracy": 81.25, "n": 1000}}}
    result = {
        "speed": [
            {
                "name": "whole",
                "machine": {"cpu": "A CPU", "cores": 2, "id": "abcdefgh"},
                "views_per_s": {"fp32": [500.0, 520.0], "bf16": [1100.0, 1200.0]},
                "ratio": {"median": 2.25, "low": 2.2, "high": 2.3, "n": 2, "confidence": 0.5},
            }
        ],
        "software": {"torch": "2"},
        "rows": [
            row("x", int8={"onnxruntime-int8": {"fp32": 65.0, "int8": 64.5, "n": 1000}}),
            row("x-labels", supervised=True, finetuned=labels),
            row("pairs", recipe="pretrain-y", probes=pairs),
            row("told", recipe="pretrain-z", told=[0.5, 0.7, 0.8, 0.9]),
        ],
    }
    page = pretrain_page.markdown(result)
    assert "| x | pretrain-x | **60.00** | 60.00 | 60.00 | **65.00** | 65.00 | 65.00 | 1,000 | abcd |" in page
    assert "A CPU, 2 cores, hardware id abcdefgh;" in page
    assert "81.25 % (n 1,000). Without labels the linear probe of x reaches 80% of that." in page
    assert "from 51.25 to 57.50 (n 1,500 pairs)" in page
    assert "| whole | 1,150 | 510 | 2.25 [2.20, 2.30], 50% | 2 | abcd |" in page
    assert "told 80 to 90 %" in page
    assert "| x | 1,100 | 400 | 780 | 1.0 % | abcd |" in page
    assert "| x-labels | 1,850 with labels | 400 |" in page
    assert "| x | onnxruntime-int8 | 65.00 | 64.50 | -0.50 | 1,000 | abcd |" in page


def test_rows_of_other_machines_stay_and_those_of_this_one_are_replaced(tmp_path):
    other = {"cpu": "B CPU", "cores": 4, "id": "zyxwvuts"}
    figures, folder = tmp_path / "pretrain.json", tmp_path / "rows"
    folder.mkdir()
    old = [row("digits", seconds=1.0), row("digits", machine=other, seconds=2.0), row("cifar10", seconds=3.0)]
    figures.write_text(json.dumps({"rows": old, "speed": []}))
    (folder / "digits.json").write_text(json.dumps(row("digits", seconds=4.0)))
    pretrain.publish(folder, figures, tmp_path / "page.md")
    found = json.loads(figures.read_text())["rows"]
    assert [(r["name"], r["machine"]["id"], r["seconds"]) for r in found] == [
        ("digits", "abcdefgh", 4.0),
        ("digits", "zyxwvuts", 2.0),
        ("cifar10", "abcdefgh", 3.0),
    ]
    assert "B CPU, 4 cores" in (tmp_path / "page.md").read_text()
