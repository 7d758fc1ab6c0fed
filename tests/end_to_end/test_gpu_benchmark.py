"""The benchmark of a GPU takes the same lines on the CPU, at a small size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # scripts: they import each other by name

import gpu  # noqa: E402


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the benchmark itself runs where there is a GPU")
def test_small__measures_everything_on_the_cpu(tmp_path, capsys):
    path = tmp_path / "results" / "gpu.json"
    gpu.main(["--small", "--epochs", "2", "--rounds", "1", "--output", str(path)])
    found = json.loads(path.read_text())
    epochs, analysis = found["epochs"], found["analysis"]
    assert [len(row) for row in epochs["seconds_with"] + epochs["seconds_without"]] == [2, 2]
    assert epochs["stages_of_the_first"]["hash and look up"] > 0
    assert 0 < epochs["stages"][0]["analyse"] < epochs["stages"][0]["callback"] < epochs["stages"][0]["epoch"]
    assert found["encoder"]["images_per_second"] > 0
    assert found["encoder"]["smallest_cosine"] == pytest.approx(1, abs=1e-5)
    assert analysis["patterns"] == 1  # one of two classes has a planted one
    assert {analysis[name] for name in analysis if name.endswith("_equal")} == {1.0}
    assert found["sparse"]["largest_relative_difference_of_objectives"] == 0
    assert found["tests"] == {"skipped": "no CUDA device"}
    assert "analyse" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is measured at full size")
def test_full_size__needs_cuda(capsys):
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--small runs the same code on the CPU" in capsys.readouterr().err


def test_compared__sees_a_difference():
    data = gpu.draw(gpu.Case(2, 0.5, examples=120))

    def run(seed):
        return gpu.analyse(data.grades, data.embeddings, features=data.features, captions=data.captions, seed=seed)

    same, other = gpu.compared(run(0), run(0)), gpu.compared(run(0), run(1))
    assert same["flags_equal"] == same["groups_equal"] == same["hardest_ids_equal"] == 1
    assert other["hardest_ids_equal"] < 1
    assert other["largest_difference_of_p_values"] > 0
