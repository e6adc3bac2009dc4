"""``jobs.probe`` on a checkpoint: what it prints and writes, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from helpers.tiny import TINY

from jobs.probe import main
from vamf.diagnostics.ratios import CURVATURE_TIMES, GAPS
from vamf.diagnostics.variance import TIMES
from vamf.training.loop import Session, train
from vamf.training.pictures import save_picture


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probed")
    train(TINY.override({"steps": 2}), Session(directory=folder))
    return folder


def test_a_checkpoint_is_probed(run, tmp_path, capsys):
    out = tmp_path / "new" / "v1.5"
    main([str(run), "--pairs", "2", "--bins", "2", "--ratios", "4", "--out", str(out)])
    reported = capsys.readouterr().out
    assert "step 2, 16 samples a batch" in reported
    for name in ("beta_star/gradient/mse", "beta_star/conditional/mse", "beta_star/paper_scalar"):
        assert name in reported
    assert "variance_ratio" in reported and "curvature, t = 0.9" in reported
    data = json.loads((tmp_path / "new" / "v1.5.json").read_text())
    assert len(data["bins"]) == 2 and len(data["total"]["loss/variance"]["value"]) == 101
    assert len(data["ratios"]) == 4 * len(TIMES) + GAPS * len(CURVATURE_TIMES)
    assert (tmp_path / "new" / "v1.5.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--pairs", "1"], "a variance needs at least 2 pairs of batches; got 1"),
        (["--ratios", "3"], "ratios need at least 4 samples for their errors; got 3"),
        (["--proxy", "head"], "head"),
        (["--proxy", "reference"], "reference"),
        (["--proxy", "reference", "--reference", "nowhere"], "no checkpoint in nowhere"),
    ],
)
def test_bad_input_costs_one_line(options, line, run, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main([str(run), "--pairs", "2", "--out", str(tmp_path / "x"), *options])
    (reported,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and reported.startswith("error: ") and line in reported
    assert list(tmp_path.iterdir()) == []


def test_an_oracle_needs_a_closed_form(tmp_path, capsys):
    moons = TINY.override(
        {
            "data.kind": "Toy",
            "data.name": "two_moons",
            "model.kind": "MLPConfig",
            "evaluation.distance.kind": "SlicedWasserstein",
            "evaluation.distance.samples": 16,
            "steps": 1,
        }
    )
    train(moons, Session(directory=tmp_path))
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--proxy", "oracle"])
    assert "needs data with a closed-form velocity" in capsys.readouterr().err


def test_points_of_many_dimensions_are_drawn_by_their_first_two(tmp_path):
    save_picture(torch.randn(8, 5), tmp_path / "points.png")
    assert (tmp_path / "points.png").stat().st_size > 0
