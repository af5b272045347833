import json
import math
import random
import sys
from pathlib import Path

import pytest

from deploykit.errors import InputError
from deploykit.measure import result

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
import bench_result

KNOWN = {
    *("$schema", "$id", "$ref", "$defs", "title", "description"),
    *("type", "const", "enum", "minimum", "required", "properties", "additionalProperties", "items"),
}


def rules(schema):
    yield schema
    for part in ("properties", "$defs"):
        for rule in schema.get(part, {}).values():
            yield from rules(rule)
    if "items" in schema:
        yield from rules(schema["items"])


def test_the_schema_uses_only_what_is_checked():
    for rule in rules(result.schema()):
        assert set(rule) <= KNOWN, rule
        assert rule.get("additionalProperties") in (None, False)
        assert set(rule.get("required", ())) <= set(rule.get("properties", ()))


def test_a_made_result_is_as_the_schema_says_and_survives_a_file(tmp_path):
    made = bench_result.made()
    result.save(made, tmp_path / "r.json")
    assert result.read(tmp_path / "r.json") == json.loads(json.dumps(made))
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def damaged(path, value):
    made = json.loads(json.dumps(bench_result.made()))
    place = made
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return made


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("schema",), "deploykit.bench/2", "schema is 'deploykit.bench/2'"),
        (("points",), None, "lacks 'points'"),
        (("extra",), 1, "unknown key 'extra'"),
        (("points", 0, "batch"), 0, "points[0].batch is 0, below 1"),
        (("points", 0, "batch"), True, "points[0].batch is bool"),
        (("subjects", 1, "kind"), "peer", "subjects[1].kind is 'peer', not one of variant, baseline"),
        (("subjects", 0, "measurements", 0, "p50_ms", "value"), math.nan, "p50_ms.value is float"),
        (("subjects", 0, "measurements", 0, "rounds", 0, "times_ms", 3), "1", "times_ms[3] is str"),
        (("subjects", 0, "start", "load_ms", "least"), None, "start.load_ms lacks 'least'"),
    ],
)
def test_what_is_not_as_the_schema_says_is_named(path, value, says):
    with pytest.raises(InputError) as found:
        result.check(damaged(path, value))
    assert says in str(found.value)


def test_a_damaged_result_is_never_written(tmp_path):
    with pytest.raises(InputError):
        result.save(damaged(("points",), None), tmp_path / "r.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"schema": "deploykit.report/1"}'])
def test_a_file_that_is_no_result_is_refused(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError, match=r"r\.json"):
        result.read(tmp_path / "r.json")


def test_the_median_lies_in_its_interval_and_the_interval_is_exact():
    found = result.quantile([float(i) for i in range(1, 101)], 0.5)
    # The sign-test interval of 100 values: ranks 40 and 61.
    assert found == {"value": 50.5, "low": 40.0, "high": 61.0, "n": 100}


def test_the_interval_of_the_90th_percentile_holds_it_as_often_as_it_says():
    rng = random.Random(4)
    held = 0
    for _ in range(400):
        found = result.quantile([rng.random() for _ in range(120)], 0.9)
        held += found["low"] <= 0.9 <= found["high"]
    assert 0.93 <= held / 400 <= 1


def test_too_few_values_bound_nothing():
    assert result.quantile([1.0, 2.0, 3.0], 0.5) == {"value": 2.0, "low": None, "high": None, "n": 3}


def test_p99_needs_662_calls_and_says_so():
    few, enough = result.quantile([1.0] * 661, 0.99), result.quantile([1.0] * 662, 0.99)
    assert few["value"] is None
    assert "662" in few["why"]
    assert enough["value"] == 1.0


def test_662_is_where_two_calls_lie_above_the_percentile():
    def two_above(n):
        return 1 - 0.99**n - n * 0.01 * 0.99 ** (n - 1)

    assert two_above(661) < 0.99 <= two_above(662)


def test_rates_come_from_the_wall_clock_and_padding_is_no_token():
    answers = [
        {"times_ms": [10.0] * 50, "wall_s": wall, "items": 8, "tokens": 80.0, "padded": 100.0, "round": i}
        for i, wall in enumerate((0.5, 0.25, 1.0))
    ]
    found = result.measurement("b8-l16-c2", answers, 0.5)
    assert found["items_per_s"] == {"value": 800.0, "least": 400.0, "most": 1600.0, "n": 3}
    assert found["tokens_per_s"]["value"] == 8000.0
    assert found["padding"] == 0.2
    assert found["p50_ms"]["n"] == 150
