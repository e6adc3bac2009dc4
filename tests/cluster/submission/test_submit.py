"""Jobs on a Ray cluster: what is uploaded, what is refused, what comes back."""

import asyncio
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
from aiohttp import ClientError, ClientSession, web
from helpers.machine import free_ports, wait_until
from helpers.ray_nodes import TOKEN
from helpers.tree import ROOT
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

from jobs.submit import main
from vamf import commands
from vamf.cluster.submission import dashboard, job_logs, submit
from vamf.cluster.submission.submit import Submission
from vamf.compat import ray as compat

JOB = """
import os, sys, time
print("node", os.environ["VAMF_TEST_NODE"])
print("variables", os.environ["GREETING"], os.environ["MLFLOW_TRACKING_URI"], sys.argv[1:])
if "--wait" in sys.argv:
    print("waiting")
    time.sleep(600)
for line in range(3):
    print("line", line)
    time.sleep(0.3)
sys.exit(3 if "--fail" in sys.argv else 0)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with one job, and things that have no business on a cluster."""
    folder = tmp_path / "project"
    for name, text in {
        "jobs/__init__.py": "",
        "jobs/bench.py": JOB,
        "vamf/data/digits.py": "",
        "vamf/__pycache__/x.pyc": "",
        "data/cifar.bin": "",
        "runs/a/checkpoint.pt": "",
        ".git/HEAD": "",
        ".venv/bin/python": "",
        "vamf.egg-info/PKG-INFO": "",
        "mlflow.db": "",
        "uv.lock": "",
        "wheels/a.whl": "",
        "notes/secret.txt": "",
        ".gitignore": "/notes/\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def bench(project: Path, *arguments: str, address: str = dashboard.LOCAL) -> Submission:
    command = ("bench", *arguments)
    env = {"GREETING": "hello"}
    return Submission(command=command, working_dir=project, address=address, env=env)


def test_only_code_is_uploaded(project: Path) -> None:
    names = {str(path) for path in submit.uploaded(project)}
    assert names == {".gitignore", "jobs/__init__.py", "jobs/bench.py", "vamf/data/digits.py"}


def test_a_folder_too_large_is_refused_with_its_largest_files(project: Path) -> None:
    for index in range(12):
        with (project / f"weights{index:02}.pt").open("wb") as file:
            file.truncate((index + 1) * 10 * 2**20)  # sparse: takes no disk
    with pytest.raises(ValueError, match=r"must stay below 512 MiB; got 780 MiB") as caught:
        submit.submit(bench(project))
    lines = str(caught.value).splitlines()
    assert len(lines) == 11
    assert lines[1].split() == ["120.0", "MiB", "weights11.pt"]
    assert lines[10].split() == ["30.0", "MiB", "weights02.pt"]


def test_an_unknown_job_is_refused_with_the_nearest_name(project: Path) -> None:
    with pytest.raises(ValueError, match=r"got 'trian': 'train'\?"):
        Submission(command=("trian", "digits"), working_dir=project)
    with pytest.raises(ValueError, match=r"must be one of train, .*; got ''"):
        Submission(command=(), working_dir=project)
    with pytest.raises(ValueError, match=r"must hold jobs/train\.py; got"):
        Submission(command=("train", "digits"), working_dir=project)


def test_a_module_of_ones_own_is_uploaded_or_refused(project: Path) -> None:
    """By its path in the working folder, as a preset's name, and as a setting."""
    command = ("own.py:MINE", "--set", "loss.kind=own.py:Loss")
    with pytest.raises(ValueError, match=r"must be in the working folder, .*; got own\.py"):
        bench(project, *command)
    (project / "own.py").write_text("")
    bench(project, *command)
    bench(project, "--set", 'loss.kind="own.py:Loss"')  # as JSON
    with pytest.raises(ValueError, match=f"relative to it; got {project}/own.py"):
        bench(project, f"{project}/own.py:MINE")


def test_a_run_is_not_left_where_ray_deletes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    root = ROOT
    train = ("train", "digits", "--scaling.workers", "2")
    wrong = {(): "none", ("--storage", "runs"): "runs", ("--storage=file:runs",): "file:runs"}
    for arguments, given in wrong.items():
        with pytest.raises(ValueError, match="train needs --storage FOLDER, an absolute") as caught:
            Submission(command=(*train, *arguments), working_dir=root)
        assert str(caught.value).endswith(f"; got {given}")
    for right in (("--storage", "/s"), ("--storage=file:///s",), ("--resume", "/s/a")):
        Submission(command=(*train, *right), working_dir=root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match="with an object store MLFLOW_TRACKING_URI must be"):
        Submission(command=(*train, "--storage", "s3://x/y"), working_dir=root)
    for known in (("--tracking", "http://x"), ("--tracking=http://x",)):
        Submission(command=(*train, "--storage=s3://x/y", *known), working_dir=root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://x")
    Submission(command=(*train, "--resume", "s3://x/y"), working_dir=root)


@pytest.mark.parametrize(
    ("command", "reported"),
    [
        (["train", "digits", "--storage", "/s", "--steps", "-3"], "steps must be at least 1; got"),
        (["train", "digts", "--storage", "/s"], "unknown preset 'digts'"),
        (
            ["train", "digits", "--storage", "/s", "--stepps", "3"],
            "did you mean --steps?",
        ),
        (["train", "--resume", "/s/a", "--workers", "2"], "did you mean --scaling.workers?"),
        (["tune", "constant", "--storage", "/s", "--trials", "1"], "needs at least 2 trials"),
        (["evaluate", "/s/a", "--sample", "3"], "did you mean --samples?"),
        (["evaluate", "--images", "/s/a", "--steps", "3"], "unknown option --steps"),
        (["evaluate", "--check", "--images", "/s"], "unknown option --images"),
        (["sample", "/s/a", "--count", "few"], "few"),
        (["bench", "nothing"], "unknown preset 'nothing'"),
    ],
)
def test_wrong_options_are_reported_before_anything_is_sent(
    command: list[str], reported: str, capsys: pytest.CaptureFixture[str]
) -> None:
    here = ["--address", "http://127.0.0.1:1", "--working-dir", str(ROOT)]
    with pytest.raises(SystemExit) as ended:
        main([*here, "--", *command])
    assert ended.value.code == 2
    assert reported in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "command",
    [
        "train digits --storage /s --steps 3",
        "train --resume /s/a --scaling.workers 2",
        "tune constant --storage /s --trials 2",
        "tune --resume /s/a --retry-failed",
        "evaluate /s/a --samples 3",
        "evaluate --images /s/a",
        "evaluate --check",
        "sample /s/a --count 3",
        "bench toy --only step",
    ],
)
def test_right_options_reach_the_cluster(command: str) -> None:
    here = ["--address", "http://127.0.0.1:1", "--working-dir", str(ROOT)]
    tracking = ["--env", "MLFLOW_TRACKING_URI=http://x"]
    with pytest.raises(ValueError, match="a Ray dashboard must answer"):
        main([*here, *tracking, "--", *command.split()])


def test_other_codes_options_are_theirs(project: Path) -> None:
    """Those of a job that is not this code's are sent as they are."""
    with pytest.raises(ValueError, match="a Ray dashboard must answer"):
        main(["--address", "http://127.0.0.1:1", "--working-dir", str(project), "--", "bench", "x"])


@pytest.mark.parametrize("options", [[], ["--detach"], ["--env", "A=b", "C=d"]])
def test_forgotten_dashes_are_asked_for(options: list[str]) -> None:
    with pytest.raises(ValueError, match="must stand before the job: ") as caught:
        main([*options, "train", "digits"])
    there = " ".join(["python -m jobs.submit", *options, "-- train digits"])
    assert str(caught.value).endswith(there)


def test_an_unknown_option_of_its_own_comes_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--adress", "x", "--", "train", "digits"])
    assert ended.value.code == 2
    line = "submit: unknown option --adress; did you mean --address?\n"
    assert capsys.readouterr().err == line


def test_headers_are_read_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_HEADERS", raising=False)
    assert dashboard.headers() == {}
    monkeypatch.setenv("RAY_JOB_HEADERS", '{"X-Pass": "hunter2"}')
    assert dashboard.headers() == {"X-Pass": "hunter2"}
    for wrong in ("X-Pass: hunter2", '["hunter2"]', '{"hunter2": 2}'):
        monkeypatch.setenv("RAY_JOB_HEADERS", wrong)
        with pytest.raises(ValueError, match="RAY_JOB_HEADERS must be a JSON object") as caught:
            dashboard.connect(dashboard.LOCAL)
        assert "hunter2" not in str(caught.value)


def test_an_installed_package_is_uploaded_beside_a_folder_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, folder = tmp_path / "site" / "vamf", tmp_path / "empty"
    for path in ("jobs/train.py", "data/digits.py", "training/checkpoints/resume.py"):
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).touch()
    (folder / "data" / "mnist").mkdir(parents=True)
    for path in ("data/a.bin", "data/mnist/b.bin", "shapes.py"):
        (folder / path).touch()
    monkeypatch.setattr(commands, "PACKAGE", package)
    monkeypatch.setattr(commands, "INSTALLED", True)
    submission = Submission(command=("train", "digits", "--storage", "/s"), working_dir=folder)
    assert submission.entrypoint == "python -m vamf train digits --storage /s"
    assert submission.program == package / "jobs" / "train.py"
    assert submission.runtime_env["py_modules"] == [str(package)]
    assert uploaded(package, submission) == {"train.py", "digits.py", "resume.py"}
    assert uploaded(folder, submission) == {"shapes.py"}
    (folder / "vamf").mkdir()  # its own code, which lacks the job
    with pytest.raises(ValueError, match=r"must hold jobs/train\.py; got"):
        Submission(command=("train", "digits", "--storage", "/s"), working_dir=folder)


def uploaded(folder: Path, submission: Submission) -> set[str]:
    """The names of the files of a folder that Ray uploads for a job."""
    names: list[Path] = []
    excludes = cast(list[str], submission.runtime_env["excludes"])
    compat.visit_uploaded(folder, excludes, names.append)
    return {path.name for path in names if path.is_file()}


def test_the_command_line_is_quoted(project: Path) -> None:
    assert bench(project, "a b", "$HOME").entrypoint == "python -m jobs.bench 'a b' '$HOME'"


def test_mlflow_variables_go_along_and_are_not_shown(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    submission = bench(project)
    sent = cast(dict[str, str], submission.runtime_env["env_vars"])
    assert sent.items() >= submission.variables.items()
    assert submission.variables["MLFLOW_TRACKING_PASSWORD"] == "hunter2"
    assert submission.variables["GREETING"] == "hello"
    assert "hunter2" not in repr(submission)
    assert "hello" not in repr(submission)


def test_variables_are_given_or_taken_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "hunter2")
    monkeypatch.delenv("ABSENT", raising=False)
    assert submit.variables(["A=b=c", "E=", "TOKEN"]) == {"A": "b=c", "E": "", "TOKEN": "hunter2"}
    with pytest.raises(ValueError, match="must have a value here; got ABSENT"):
        submit.variables(["ABSENT"])


def test_the_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert dashboard.default_address() == dashboard.LOCAL
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    assert dashboard.default_address() == "http://head:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://other:8265")
    assert dashboard.default_address() == "http://other:8265"
    with pytest.raises(ValueError, match=r"must be the dashboard's, .*; got head:6379"):
        dashboard.connect("head:6379")


def test_an_address_without_a_cluster_is_one_line(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ValueError, match=f"must answer at http://127.0.0.1:{port}; got no"):
            submit.submit(bench(project, address=f"http://ann:hunter2@127.0.0.1:{port}"))
    with pytest.raises(ValueError, match=r"got no answer \(ConnectionError\)") as caught:
        dashboard.connect(f"http://ann:hunter2@127.0.0.1:{port}")
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


class Flickering:
    """A cluster whose connections break in the middle of a job's log."""

    log = "one\ntwo\nthree\nfour\n"

    def __init__(self) -> None:
        self.connections = 0

    def get_job_info(self, job_id: str) -> JobDetails:
        status = JobStatus.SUCCEEDED if self.connections == 3 else JobStatus.RUNNING
        return JobDetails(type=JobType.SUBMISSION, entrypoint="", status=status, message="done")

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        self.connections += 1
        for start in range(0, 7 * self.connections, 5):
            yield self.log[start : start + 5]
        if self.connections < 3:
            raise ClientError("broken")


def test_a_lost_connection_repeats_no_line_of_the_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_logs, "PAUSE_S", 0.01)
    assert job_logs.follow(cast(JobSubmissionClient, Flickering()), "j") == 0
    assert capsys.readouterr().out == Flickering.log + "Job j SUCCEEDED: done\n"


def test_a_problem_is_reported_in_one_line() -> None:
    assert dashboard.first_and_last_line(
        "setup failed\nTraceback:\n  File\n\nNo module named pip\n"
    ) == ("setup failed ... No module named pip")
    assert (
        dashboard.without("at http://ann:hunter2@x, 0", ["hunter2", "0"])
        == "at http://ann:...@x, 0"
    )


@pytest.mark.slow
def test_a_job_is_followed_to_its_end(
    ray_head: str, project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # must not win over the option
    options = ["--address", ray_head, "--working-dir", str(project), "--env", "GREETING=hello"]
    assert main([*options, "--", "bench", "--steps", "3"]) == 0
    out, err = capfd.readouterr()
    assert "variables hello http://mlflow.example ['--steps', '3']\nline 0\nline 1\nline 2\n" in out
    assert "\nnode " in out  # the environment of `ray start`, as jobs/cluster/ray-up.yaml needs it
    assert "SUCCEEDED" in out.splitlines()[-1]
    assert err == ""
    assert main([*options, "--", "bench", "--fail"]) == 3
    out = capfd.readouterr().out
    assert "FAILED: Job entrypoint command failed with exit code 3" in out.splitlines()[-1]
    assert out.count("line 2") == 1


@pytest.mark.slow
def test_a_stopped_job_has_not_succeeded(
    ray_head: str, project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    job_id = submit.submit(bench(project, "--wait", address=ray_head))
    client = dashboard.connect(ray_head)
    wait_until(lambda: "waiting" in client.get_job_logs(job_id), "a line of the job")
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(job_logs.follow(client, job_id)))
    thread.start()
    assert job_logs.stop(dashboard.connect(ray_head), job_id) == 0
    thread.join(60)
    assert codes == [1]
    assert job_logs.status(client, job_id) == 0
    assert f"Job {job_id} STOPPED" in capfd.readouterr().out
    with pytest.raises(ValueError, match="must know the job; got"):
        job_logs.follow(client, "raysubmit_none")


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["y\n", "n\n", None])
def test_control_c_asks_whether_to_stop_the_job(
    ray_head: str, project: Path, monkeypatch: pytest.MonkeyPatch, answer: str | None
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    job_id = submit.submit(bench(project, "--wait", address=ray_head))
    client = dashboard.connect(ray_head)
    wait_until(lambda: "waiting" in client.get_job_logs(job_id), "a line of the job")
    command = [sys.executable, "-m", "jobs.submit", "--address", ray_head, "--follow", job_id]
    keyboard, terminal = pty.openpty()
    follower = subprocess.Popen(
        command,
        stdin=terminal if answer else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert follower.stdout is not None
        for line in follower.stdout:
            if line == "waiting\n":
                break
        follower.send_signal(signal.SIGINT)
        os.write(keyboard, (answer or "").encode())
        said = follower.communicate(timeout=60)[0]
    finally:
        follower.kill()
        os.close(keyboard)
        os.close(terminal)
    assert follower.returncode == 130, said
    assert "Traceback" not in said
    if answer == "y\n":
        assert f"Job {job_id} STOPPED" in said
    else:
        assert f"Job {job_id} continues." in said
        assert f"--stop {job_id}" in said
        assert not job_logs.details(client, job_id).status.is_terminal()
        assert job_logs.stop(client, job_id) == 0


def said_without(ray_head: str, **env: str) -> tuple[int, list[str]]:
    """How asking for a job that does not exist ends, in a process with other credentials."""
    known = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | env
    ended = subprocess.run(
        [sys.executable, "-m", "jobs.submit", "--address", ray_head, "--status", "none"],
        env=known | {"HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.stdout == ""
    return ended.returncode, ended.stderr.splitlines()


@pytest.mark.slow
def test_a_cluster_that_needs_a_token_says_so(ray_head: str) -> None:
    token = TOKEN["RAY_AUTH_TOKEN"]
    status, (line,) = said_without(ray_head)
    assert status == 1
    assert line.startswith(f"submit: a Ray dashboard must answer at {ray_head}; got ")
    assert "RAY_AUTH_MODE=token" in line and "RAY_AUTH_TOKEN" in line
    status, (line,) = said_without(ray_head, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="hunter2" * 9)
    assert status == 1
    assert "Invalid" in line and "hunter2" not in line
    known = f"submit: Ray at {ray_head} must know the job"
    status, (line,) = said_without(ray_head, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    assert line.startswith(known)
    authorised = json.dumps({"Authorization": f"Bearer {token}"})
    status, (line,) = said_without(ray_head, RAY_JOB_HEADERS=authorised)
    assert line.startswith(known) and token not in line


@contextmanager
def proxy(upstream: str, word: str) -> Iterator[str]:
    """The address of a reverse proxy which wants a word in the header X-Pass of every request."""

    async def forward(request: web.Request) -> web.StreamResponse:
        if request.headers.get("X-Pass") != word:
            return web.Response(status=401, text="who are you?")
        names = ("Authorization", "Content-Type")
        sent = {name: request.headers[name] for name in names if name in request.headers}
        async with ClientSession(headers=sent) as session:
            url = upstream + request.path_qs
            if "Upgrade" in request.headers:
                back = web.WebSocketResponse()
                await back.prepare(request)
                async with session.ws_connect(url) as source:
                    async for message in source:
                        await back.send_str(message.data)
                return back
            body = await request.read()
            async with session.request(request.method, url, data=body) as answer:
                text = await answer.read()
                return web.Response(status=answer.status, body=text, content_type="text/plain")

    (port,), loop, ready = free_ports(1), asyncio.new_event_loop(), threading.Event()

    async def serve() -> None:
        app = web.Application(client_max_size=2**29)
        app.router.add_route("*", "/{path:.*}", forward)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        ready.set()

    thread = threading.Thread(target=lambda: (loop.run_until_complete(serve()), loop.run_forever()))
    thread.start()
    try:
        assert ready.wait(30)
        yield f"http://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@pytest.mark.slow
def test_a_proxy_gets_its_header_with_every_request(
    ray_head: str, project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with the upload, and with the log, which comes through a web socket."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    with proxy(ray_head, "hunter2") as address:
        options = ["--address", address, "--working-dir", str(project), "--env", "GREETING=hello"]
        with pytest.raises(ValueError, match=r"must answer at http://127.0.0.1:\d+; got") as caught:
            main([*options, "--", "bench"])
        assert "who are you?" in str(caught.value)
        monkeypatch.setenv("RAY_JOB_HEADERS", '{"X-Pass": "hunter2"}')
        (project / "new.py").write_text("")  # another upload than those before
        assert main([*options, "--", "bench"]) == 0
    out, err = capfd.readouterr()
    assert "line 0\nline 1\nline 2\n" in out and "SUCCEEDED" in out.splitlines()[-1]
    assert "hunter2" not in out + err
