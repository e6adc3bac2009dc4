"""Every command and program in README.md and the pages it links to runs, on a tiny budget."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import pages
from helpers.couplings import digits_couplings
from helpers.ended import write_run, write_search
from helpers.pictures import write_images, write_tiny
from helpers.searching import without_ray
from helpers.tiny import SETTINGS, TINY
from helpers.tree import ROOT

from jobs import (
    bench,
    cli,
    clock,
    compare,
    couple,
    encode,
    evaluate,
    export,
    probe,
    reproduce,
    resend,
    sample,
    train,
    tune,
)
from vamf.benchmarks import one_clock
from vamf.cluster.submission.submit import Submission
from vamf.cluster.train.tracked_run import create, new
from vamf.metrics import calibration
from vamf.presets import PRESETS
from vamf.training.loop import Session
from vamf.training.loop import train as train_in_place

PAGES = (
    "README.md",
    "vamf/training/README.md",
    "vamf/data/README.md",
    "vamf/metrics/README.md",
    "vamf/cluster/search/README.md",
)
"""The pages whose commands run here; tests/jobs/test_cluster_files.py has jobs/cluster's."""

COMMANDS = list(map(list, dict.fromkeys(tuple(c) for p in PAGES for c in pages.commands(p))))
"""Each command once, however many pages show it."""

README = pages.commands("README.md")

EXAMPLES = ("jobs/examples/shapes.py", "jobs/examples/shapes_space.py")


def commands(name: str) -> list[list[str]]:
    return [arguments for job, *arguments in COMMANDS if job == name]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme") / "NAME"
    folder.mkdir()
    train_in_place(TINY, Session(directory=folder))
    return folder


def test_a_page_is_read_as_a_shell_reads_it():
    assert pages.command("uv run vamf train digits --set a='b c'  # vamf tune") == [
        *("train", "digits", "--set", "a=b c")
    ]
    assert pages.command("python -m jobs.tune --trials 8") == ["tune", "--trials", "8"]
    assert pages.command("uv run --extra latents vamf encode a") == ["encode", "a"]
    assert pages.command("kubectl get secret vamf -o name") is None


@pytest.mark.parametrize("page", [*PAGES, "jobs/cluster/README.md", "CONTRIBUTING.md"])
def test_pages_link_to_files_that_exist(page):
    assert [link for link in pages.links(page) if not link.exists()] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_the_messages_are_those_of_the_code():
    section = (ROOT / "README.md").read_text().partition("## When something is wrong")[2]
    shown = re.findall(r"^\| `(.*?)` \|", section, re.M)
    assert len(shown) == 10
    texts = pages.messages("vamf", "jobs")
    assert [message for message in shown if not any(message in text for text in texts)] == []


COMPILED = {"compute.compile": True, "compute.precision": "bfloat16"}
ALPHA = {"loss.alpha.kind": "AlphaSchedule"}
SEMIGROUP = {"loss.kind": "SemigroupLoss", "beta.value": 0}
TERMINAL = {"loss.kind": "TerminalVelocityLoss", "beta.value": 0}
STOPPED = TERMINAL | {"loss.stop_derivative": True}
HEAD = {"proxy": "head", "model.velocity_head": True}
FLOW_MATCHING = {"times.kind": "UniformTimes", "times.prob_equal": 1}
DENOISES = FLOW_MATCHING | {"loss.kind": "DDPM", "proxy": "ema", "evaluation.sampler": "ddim"}
LABELLED = {"guidance.omega": 2, "model.classes": 10}
AUGMENTED = {"augment.p": 0.1, "model.augmentations": 6}
OWN = {"model.kind": "jobs/examples/shapes.py:Convolutions"}


@pytest.mark.parametrize(
    "changes",
    [
        *(COMPILED | {"proxy": proxy} for proxy in ("ema", "online", "oracle")),
        *(COMPILED | {"proxy": "reference", "reference": "runs/a"}, HEAD, ALPHA, ALPHA | HEAD),
        *(HEAD | {"compute.compile": True}, FLOW_MATCHING | COMPILED, DENOISES | COMPILED),
        *(COMPILED | {"loss.kind": "jobs/examples/shapes.py:WithBoundary"}, OWN),
        *(LABELLED | COMPILED, LABELLED | ALPHA | COMPILED, AUGMENTED | COMPILED),
        ALPHA | COMPILED,
        *(HEAD | COMPILED, LABELLED | HEAD, AUGMENTED | HEAD | COMPILED),
        *({"model.kind": "MLPConfig"}, {"model.kind": "DiTConfig", "model.patch": 2}),
        *(
            SEMIGROUP | COMPILED,
            SEMIGROUP | LABELLED,
            TERMINAL,
            TERMINAL | HEAD,
            STOPPED | COMPILED,
        ),
        *(TERMINAL | {"proxy": "oracle"}, STOPPED | LABELLED | {"loss.boundary": None}),
        *(COMPILED | {"beta.kind": kind} for kind in ("AdaptiveBeta", "BetaOfTime")),
    ],
    ids=str,
)
def test_what_works_together(changes, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert PRESETS["digits"].override(changes).batch == 128


@pytest.mark.parametrize(
    "changes",
    [
        *(OWN | {"compute.compile": True}, OWN | HEAD),
        *({"head.every_r": True}, {"proxy": "reference"}),
        *(DENOISES | {"probe.every": 5}, DENOISES | LABELLED),
        *(
            AUGMENTED | {"proxy": "batch"},
            LABELLED | {"proxy": "oracle"},
            AUGMENTED | {"proxy": "oracle"},
        ),
        *(AUGMENTED | {"model.kind": "MLPConfig"}, {"data.kind": "Toy"}),
        *(SEMIGROUP | {"beta.value": 1}, TERMINAL | COMPILED, TERMINAL | LABELLED),
        *(SEMIGROUP | {"probe.every": 5}, SEMIGROUP | {"times.prob_equal": 0}),
    ],
    ids=str,
)
def test_what_does_not_work_together(changes, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError):
        PRESETS["digits"].override(changes)


def test_every_job_is_shown():
    shown = {job for job, *_ in README}
    assert shown == {
        *("train", "tune", "evaluate", "compare", "sample", "bench", "submit"),
        *("probe", "reproduce", "export", "encode", "resend", "clock", "couple"),
    }


@pytest.mark.parametrize("arguments", commands("train") + commands("tune"), ids=" ".join)
def test_experiments_resolve(arguments, capsys, tmp_path, monkeypatch):
    """``--resume`` is run for real elsewhere; here it must find that there is nothing to resume."""
    monkeypatch.chdir(ROOT)  # files of the examples are named from there
    job = train if arguments in commands("train") else tune
    if "--resume" in arguments:
        with pytest.raises(SystemExit):
            job.main(["--resume", str(tmp_path)])
        assert "is missing" in capsys.readouterr().err
        return
    if "data.kind=Couplings" in arguments:  # which must be there: their folder says what they are
        digits_couplings(tmp_path / "pairs")
        arguments = [w.replace("=pairs", f"={tmp_path}/pairs") for w in arguments]
    job.main([*arguments, "--dry-run"])
    assert '"steps"' in capsys.readouterr().out


def shown_by(example):
    text = ast.get_docstring(ast.parse((ROOT / example).read_text())) or ""
    lines = [line for line in text.splitlines() if line.startswith("uv run ")]
    assert lines
    return list(map(pages.command, lines))


@pytest.mark.parametrize(
    ("job", "arguments"),
    [(job, arguments) for example in EXAMPLES for job, *arguments in shown_by(example)],
    ids=str,
)
def test_the_examples_commands_resolve(job, arguments, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    {"train": train, "tune": tune}[job].main([*arguments, "--dry-run"])
    assert '"steps"' in capsys.readouterr().out


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_readme_shows_the_examples(example):
    assert any(example in word for words in README for word in words)


@pytest.mark.parametrize("arguments", commands("encode"), ids=" ".join)
def test_folders_to_encode_are_read(arguments):
    """tests/data encode some; this needs the autoencoder's weights."""
    assert cli.read(encode.Options, arguments, "encode").images.name


OF_RUNS = [
    (job, arguments)
    for job in (evaluate, sample, export)
    for arguments in commands(job.__name__.rpartition(".")[2])
    if "runs/NAME" in arguments
]


@pytest.mark.parametrize(("job", "arguments"), OF_RUNS, ids=str)
def test_checkpoints_are_used(job, arguments, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    job.main([str(run) if argument == "runs/NAME" else argument for argument in arguments])
    assert "step 6" in capsys.readouterr().out
    assert job is evaluate or (tmp_path / arguments[arguments.index("--out") + 1]).exists()


@pytest.mark.parametrize("arguments", commands("couple"), ids=" ".join)
def test_flows_are_coupled(arguments, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    named = [str(run) if word.startswith("runs/") else word for word in arguments]
    couple.main([*named, "--count", "2", "--steps", "1"])
    assert "data.kind=Couplings data.root=pairs" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", commands("compare"), ids=" ".join)
def test_runs_are_compared(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folders = [tmp_path / word for word in arguments if word.startswith("runs/")]
    if len(folders) == 1:
        write_search(folders[0], {0.0: [3.0], 0.5: [2.0]})
    else:
        for index, folder in enumerate(folders):
            write_run(folder, {"beta.value": index / 2}, distance=3.0 - index)
    compare.main(arguments)
    assert "| beta.value=0.5 |" in capsys.readouterr().out
    assert (tmp_path / "comparison" / "samples.png").exists()


def images_and_check():
    return [a for a in commands("evaluate") if "runs/NAME" not in a]


@pytest.mark.parametrize("arguments", images_and_check(), ids=" ".join)
def test_images_are_measured(arguments, tmp_path, monkeypatch, capsys):
    """On a few random pixels for MNIST, and anchors of which only the sentence is known."""
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "data")
    write_images(tmp_path / "samples", np.zeros((50, 28, 28), "u1"))
    anchor = calibration.KnownValue("it", 3.15, 3.15, 0.05)
    monkeypatch.setattr(calibration, "known_values", lambda *_: iter([anchor]))
    evaluate.main(arguments)
    assert "fd_mnist_cnn64_v1_n50_train" in (out := capsys.readouterr().out) or "pass  it" in out


@pytest.mark.slow  # 64 samples' own gradients, as the README asks for
@pytest.mark.parametrize("arguments", commands("probe"), ids=" ".join)
def test_landscapes_are_measured(arguments, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    probe.main([str(run) if argument == "runs/NAME" else argument for argument in arguments])
    assert "beta_star/gradient/mse" in capsys.readouterr().out
    assert (tmp_path / "landscape.png").stat().st_size > 0


COMPARISONS = [arguments for arguments in commands("reproduce") if "--objectives" in arguments]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", COMPARISONS, ids=" ".join)
def test_objectives_are_compared_on_points(arguments, tmp_path, capsys):
    one = [word for word in arguments if word not in ("eight_gaussians", "checkerboard")]
    tiny = ["--steps", "2", "--seeds", "0", "1", "--distance.samples", "16"]
    reproduce.main([*one, *tiny, "--storage", str(tmp_path), "--name", "all"])
    assert "two_moons, flow matching is finished" in capsys.readouterr().out
    assert "SW1 against MeanFlow" in (tmp_path / "all" / "reproduction.md").read_text()


SWEEPS = [arguments for arguments in commands("reproduce") if arguments not in COMPARISONS]


@pytest.mark.parametrize("arguments", SWEEPS, ids=" ".join)
def test_the_papers_tables_are_written(arguments, tmp_path, capsys):
    tiny = ["--steps", "2", "--betas", "0", "1", "--distance.samples", "16"]
    reproduce.main([*arguments, *tiny, "--storage", str(tmp_path), "--name", "all"])
    assert "two_moons is finished" in capsys.readouterr().out
    assert "SW1 against" in (tmp_path / "all" / "reproduction.md").read_text()


@pytest.mark.parametrize("arguments", commands("resend"), ids=" ".join)
def test_what_mlflow_missed_is_sent(arguments, tracking_uri, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    create(TINY, new(tmp_path / "runs" / "NAME", tracking_uri, "digits"))
    resend.main(arguments)
    assert capsys.readouterr().out == "nothing was waiting to be sent\n"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", commands("bench"), ids=" ".join)
def test_steps_are_timed(arguments, capsys):
    bench.main([*arguments, "--repeats", "1", "--batch", "16"])
    assert "to the first step" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", commands("clock"), ids=" ".join)
def test_objectives_are_timed(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(one_clock, "_pace", lambda *_: one_clock.Pace(0.0, 20.0, 0.1, None))
    clock.main(arguments)
    assert "tune mnist_120s.py --trials 9 --seeds 3" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", commands("submit"), ids=" ".join)
def test_jobs_can_be_submitted(arguments):
    """What is submitted is a job that exists, with an experiment that resolves."""
    command = arguments[arguments.index("--") + 1 :]
    Submission(command=tuple(command), working_dir=ROOT)
    job, *options = command
    {"train": train, "tune": tune}[job].main([*options, "--dry-run"])


def test_programs_run(tracking_uri, tmp_path, monkeypatch):
    """The README's Python, with tiny experiments in the place of the presets it names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    for preset in ("digits", "digits_search"):
        monkeypatch.setitem(PRESETS, preset, TINY)
    without_ray(monkeypatch)
    program = "".join(pages.blocks("README.md", "python"))
    for shown, tiny in (("steps=500", "steps=2"), ("trials=6, seeds=2", "trials=2, seeds=1")):
        assert shown in program
        program = program.replace(shown, tiny)
    names = {}
    exec(compile(program, "README.md", "exec"), names)
    assert names["run"].load("cpu").trained.step == 2
    assert len(names["search"].to_pandas()) == 2


@pytest.mark.slow  # a search on Ray
def test_the_first_hour_runs(tracking_uri, tmp_path, monkeypatch, local_ray, capsys):
    """jobs/examples/first_hour.py with another budget, which it has in a cell of its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    tiny = {
        "SETTINGS": SETTINGS | {"probe": None},
        **{"TRIALS": 2, "SEEDS": 2, "PAIRS": 2, "FOLDER": tmp_path},
    }
    text = (ROOT / "jobs/examples/first_hour.py").read_text()
    names = {"__name__": "first_hour"}
    assert all(f"\n{name} = " in text for name in tiny)
    for cell in re.split(r"^# %%.*\n", text, flags=re.M):
        program = ast.parse(cell)
        for line in program.body:
            if isinstance(line, ast.Assign) and (name := line.targets[0].id) in tiny:
                line.value = ast.copy_location(ast.Name("_" + name, ast.Load()), line.value)
        names |= {"_" + name: value for name, value in tiny.items()}
        exec(compile(program, "first_hour.py", "exec"), names)
    out = capsys.readouterr().out
    assert "beta_star/gradient/mse" in out and "| trial |" in out
    pictures = ("real", "samples", "landscape", "search/pareto")
    assert all((tmp_path / f"{name}.png").stat().st_size > 0 for name in pictures)
