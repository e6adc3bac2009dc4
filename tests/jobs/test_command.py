"""``vamf --help`` and its like: fast, complete and true."""

import math
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.tree import ROOT

from jobs import listing, named, summaries
from vamf import __main__ as command
from vamf import commands
from vamf.cluster.submission.submit import JOBS
from vamf.presets import PRESETS

HEAVY = {"torch", "ray", "tyro", "mlflow", "optuna", "pydantic", "numpy"}


def loaded(*argv: str) -> tuple[str, set[str]]:
    """What ``vamf`` prints in a process of its own, and the packages that it loads."""
    code = (
        f"import sys, vamf.__main__ as m\nsys.argv = {['vamf', *argv]!r}\n"
        "try: m.main()\nexcept SystemExit: pass\nprint('\\0', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, _, modules = done.stdout.partition("\0")
    return said, {name.split(".")[0] for name in modules.split()}


def test_the_programs_are_listed_in_one_screen_and_without_heavy_imports() -> None:
    said, packages = loaded("--help")
    assert packages & HEAVY == set()
    assert len(said.splitlines()) <= 24 and max(map(len, said.splitlines())) <= 100
    assert all(f"  {name} " in said for name in summaries.PROGRAMS)


@pytest.mark.parametrize(("program", "known"), [("train", PRESETS), ("tune", named.SPACES)])
def test_names_are_listed_without_heavy_imports(program: str, known: list[str]) -> None:
    said, packages = loaded(program, "--help")
    assert packages & HEAVY == set()
    assert all(f"  {name} " in said for name in known)
    assert "--resume FOLDER" in said and "--help" in said and f"{listing.OWN[program][0]} " in said


def test_the_programs_are_those_of_jobs() -> None:
    programs = {f.stem for f in (ROOT / "jobs").glob("*.py") if "__main__" in f.read_text()}
    assert set(summaries.PROGRAMS) == programs - {"evaluate_check", "evaluate_images"}
    assert set(JOBS) <= programs


def test_the_summaries_name_what_there_is() -> None:
    assert [*summaries.PRESETS] == [*PRESETS]
    assert sorted(summaries.SPACES) == sorted(named.SPACES)


SIZES = {n: m[1] for n, s in summaries.PRESETS.items() if (m := re.search(r"of ([\d.]+) M\b", s))}


@pytest.mark.parametrize("name", SIZES)
def test_the_sizes_of_networks_are_right(name: str) -> None:
    with torch.device("meta"):
        net = PRESETS[name].model.build(PRESETS[name].data.shape)
    million = math.fsum(p.numel() for p in net.parameters()) / 1e6
    digits = len(SIZES[name].partition(".")[2])
    assert f"{million:.{digits}f}" == SIZES[name]


def test_an_unknown_program_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, hint in {"trian": "did you mean 'train'?", "xyz": "vamf --help lists them"}.items():
        monkeypatch.setattr(sys, "argv", ["vamf", name])
        with pytest.raises(SystemExit) as ended:
            command.main()
        assert ended.value.code == 2
        assert capsys.readouterr().err == f"error: unknown program {name!r}; {hint}\n"


@pytest.mark.parametrize(
    ("program", "by_name"),
    [
        ("/usr/bin/vamf", True),
        (r"vamf.exe", True),
        ("/a/vamf/__main__.py", True),
        ("/a/jobs/train.py", False),
        ("/usr/bin/pytest", False),
        ("-c", False),
    ],
)
def test_commands_are_shown_as_they_were_given(
    program: str, by_name: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert commands._by_name(Path(program)) == by_name
    monkeypatch.setattr(commands, "SHORT", by_name)
    shown = "vamf train --resume a" if by_name else "python -m jobs.train --resume a"
    assert commands.shown("train", "--resume", "a") == shown


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with the layout of a wheel, and nothing else of this repository."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "vamf").symlink_to(tmp_path / "vamf")
    (tmp_path / "vamf").mkdir()
    for path in [*(ROOT / "vamf").iterdir(), ROOT / "jobs", ROOT / "tune_spaces"]:
        (tmp_path / "vamf" / path.name).symlink_to(path)
    return tmp_path / "site"


def test_an_installed_wheel_has_all_programs(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setenv("PYTHONPATH", str(site))
    code = (
        "import sys; from vamf import commands; from vamf.jobs import named, tune\n"
        "assert named.space('constant').__name__ == 'vamf.tune_spaces.constant'\n"
        "assert commands.argv('train')[2:] == ['vamf.jobs.train']\n"
        "assert not {'jobs', 'tune_spaces'} & sys.modules.keys()\n"
        "print(commands.shown('train'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("vamf train\n", "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], ["train"]),
        (["train", "imagenet_dit_x"], ["imagenet_dit_xl2"]),
        (["tune", ""], sorted(named.SPACES)),
    ],
    ids=str,
)
def test_bash_completes_names(words: list[str], expected: list[str]) -> None:
    script = listing.completion("bash")
    line = ["vamf", *words]
    shell = f"{script}\nCOMP_WORDS=({shlex.join(line)})\nCOMP_CWORD={len(words)}\n"
    shell += 'function=$(complete -p vamf | sed "s/.*-F //; s/ .*//")\n$function\n'
    shell += 'printf "%s\\n" "${COMPREPLY[@]}"\n'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    words = sorted(word for word in done.stdout.split() if not word.startswith("-"))
    assert words == expected


def test_another_shell_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"a shell must be one of bash, .*; got 'cmd'"):
        listing.completion("cmd")
