import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploykit.errors import InputError
from deploykit.measure import history

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
import bench_result


def run(day, hardware="3f9c21ab", **changes):
    machine = {"id": hardware}
    return (
        bench_result.made(subjects=("openvino-bf16",), created=f"2026-10-{day:02d}T00:00:00", hardware=machine)
        | changes
    )


def level(rng, n, value, noise=0.01):
    return [value * rng.uniform(1 - noise, 1 + noise) for _ in range(n)]


def test_a_run_is_one_line_in_the_file_of_its_machine(tmp_path):
    folder = tmp_path / "history"
    history.append(run(1), folder)
    history.append(run(2), folder)
    path = history.append(run(2, "00ff00ff"), folder)
    assert path == folder / "00ff00ff.jsonl"
    assert sorted((p.name, len(p.read_text().splitlines())) for p in folder.iterdir()) == [
        ("00ff00ff.jsonl", 1),
        ("3f9c21ab.jsonl", 2),
    ]
    line = json.loads(path.read_text())
    assert line["schema"] == "deploykit.bench-history/1"
    assert set(line["series"]) == {f"minilm@openvino-bf16 {bench_result.name_of(*p)}" for p in bench_result.POINTS}


def test_runs_at_once_lose_no_line(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda day: history.append(run(day), tmp_path), range(1, 13)))
    assert len((tmp_path / "3f9c21ab.jsonl").read_text().splitlines()) == 12


def test_trends_are_in_the_order_of_time_and_machines_are_kept_apart(tmp_path):
    for day in (3, 1, 2):
        history.append(run(day), tmp_path)
    history.append(run(1, "00ff00ff"), tmp_path)
    found = history.read(tmp_path)
    assert found.runs == 4
    assert {(t.hardware, len(t.values)) for t in found.trends} == {("3f9c21ab", 3), ("00ff00ff", 1)}
    assert found.trends[-1].when == ("2026-10-01T00:00:00", "2026-10-02T00:00:00", "2026-10-03T00:00:00")


def test_another_number_of_threads_is_another_trend(tmp_path):
    history.append(run(1), tmp_path)
    history.append(run(2, options=bench_result.made()["options"] | {"threads": 1}), tmp_path)
    assert {len(trend.values) for trend in history.read(tmp_path).trends} == {1}


def test_bundles_are_kept_apart_by_their_labels(tmp_path):
    for day, label in ((1, "small"), (2, "large")):
        made = run(day)
        made["subjects"][0]["bundle"] = label
        history.append(made, tmp_path)
    assert {trend.subject for trend in history.read(tmp_path).trends} == {"small@openvino-bf16", "large@openvino-bf16"}


def test_a_damaged_line_is_left_out_and_named(tmp_path):
    history.append(run(1), tmp_path)
    with (tmp_path / "3f9c21ab.jsonl").open("a") as file:
        file.write('{"schema": "deploykit.bench-history/1", "crea')
    history.append(run(2), tmp_path)
    found = history.read(tmp_path)
    assert (found.runs, found.damaged) == (2, ("3f9c21ab.jsonl:2",))


def test_no_history_is_an_error(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError):
            history.read(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        history.append(run(1), tmp_path / "file")


def test_a_change_of_level_is_found_where_it_is():
    rng = random.Random(0)
    found = history.changes([*level(rng, 10, 5.0), *level(rng, 10, 6.0)])
    assert [change.at for change in found] == [10]
    assert found[0].ratio == pytest.approx(1.2, abs=0.02)
    assert found[0].p < 0.01


def test_two_changes_are_found():
    rng = random.Random(1)
    values = [*level(rng, 14, 5.0), *level(rng, 14, 7.0), *level(rng, 14, 3.0)]
    assert [change.at for change in history.changes(values)] == [14, 28]


@pytest.mark.parametrize(
    "values", [[], [1.0], [1.0, 2.0], [5.0] * 40, [*[5.0] * 20, 50.0, *[5.0] * 20], [*[5.0] * 20, *[5.05] * 20]]
)
def test_steady_values_one_wild_run_and_tiny_changes_are_no_change(values):
    assert history.changes(values) == ()


def test_noise_alone_is_seldom_called_a_change():
    rng = random.Random(5)
    alarms = sum(bool(history.changes([rng.gauss(10, 1) for _ in range(30)])) for _ in range(200))
    assert alarms / 200 <= 0.08
