"""The benchmark's own arithmetic, and its processes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import results
from benchmarks.contest import ContestantError, Process


def arm(name, texts_per_s=2.0, **changes):
    figure = {"median": texts_per_s, "low": 1.0, "high": 3.0, "n": 6, "confidence": 0.95}
    quality = {"cosine_mean": 1.0, "cosine_p1": 1.0, "cosine_min": 1.0}
    facts = {"texts_per_s": figure, "tokens_per_s": figure, "query_p50_ms": figure, "quality": quality}
    return {"name": name, "versions": {"numpy": "2"}, "batch_size": 8, "runs": "", **facts, **changes}


def test_an_interval_says_how_sure_it_is():
    assert results.interval([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0, "n": 3, "confidence": 0.75}
    six = results.interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert (six["low"], six["high"], six["confidence"]) == (1.0, 6.0, 0.95)


def test_a_ratio_is_taken_round_by_round():
    assert results.ratio([2.0, 20.0, 200.0], [1.0, 10.0, 100.0])["median"] == 2.0


def test_spearman_shares_the_rank_of_ties():
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    a, b = draw.integers(0, 5, 50).astype(float), draw.normal(size=50)
    assert results.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)


def test_quality_is_blind_to_length_and_not_to_direction():
    reference = np.eye(4, dtype=np.float32)
    same = results.quality(3 * reference, reference, None)
    assert same["cosine_min"] == pytest.approx(1.0)
    assert results.quality(reference[::-1], reference, None)["cosine_mean"] == pytest.approx(0.0)


def test_the_page_ranks_contestants_and_lists_those_that_failed():
    times = {"throughput": results.ratio([2.0] * 6, [1.0] * 6), "latency": results.ratio([3.0] * 6, [1.0] * 6)}
    page = results.markdown(
        {
            "workload": dict.fromkeys(
                ("file", "texts", "tokens", "tokens_p10", "tokens_p50", "tokens_p90", "queries_per_round"), 1
            )
            | {"query_tokens_p50": 1, "pairs": 0},
            "machine": {"cpu": "a processor", "id": "3f9c"},
            **{"threads": 2, "seed": 0, "rounds": 6, "load_before": 0.0, "command": "python …", "ours": "deploykit"},
            "arms": [arm("slow"), arm("deploykit", 9.0), {"name": "broken", "error": "it died"}],
            "against": {"slow": times},
            "best_peer": {"throughput": "slow", "latency": "slow"},
            "faithful": 0.999,
        }
    )
    assert page.index("| deploykit | 9") < page.index("| slow | 2")
    assert "| slow | 2.00x [2.00, 2.00], 6 rounds | 3.00x [3.00, 3.00], 6 rounds |" in page
    assert "- broken: it died" in page


def test_a_contestant_that_fails_says_why_and_stays_asleep(tmp_path):
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(["a"]))
    with Process(Path(sys.executable), threads=1, log=tmp_path / "log") as process:
        with pytest.raises(ContestantError, match="KeyError: 'nobody'"):
            process.ask("open", factory="nobody", settings={}, texts=str(texts), queries=str(texts))
        assert state(process) == "T"
    assert not Path(f"/proc/{process.pid}").exists()


def state(process):
    """The letter of the kernel for what the process does; T is stopped, which takes a moment."""
    for _ in range(100):
        letter = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        if letter == "T":
            break
        time.sleep(0.01)
    return letter
