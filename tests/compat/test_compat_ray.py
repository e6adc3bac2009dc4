"""Each private name of Ray that vamf uses is still there, and does what it is used for."""

import inspect
import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
import ray
from helpers.machine import free_ports

from vamf.compat import ray as compat


def test_an_address_of_host_and_port_stays() -> None:
    assert compat.bootstrap_address("203.0.113.1:6379") == "203.0.113.1:6379"


def test_the_users_token_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    compat.use_home_token()


def test_the_token_can_be_reloaded() -> None:
    compat.reload_token()


def test_the_folder_of_sessions_is_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/some/folder")
    assert compat.default_temp_dir() == "/some/folder"


def test_nodes_can_be_kept_on_loopback() -> None:
    from ray._private import ray_constants, services

    before = ray_constants.ENABLE_RAY_CLUSTER
    with compat.listening_on_loopback():
        assert services.get_node_ip_address() == "127.0.0.1"
    assert before == ray_constants.ENABLE_RAY_CLUSTER


def test_node_errors_can_be_muted(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray._private.worker

    source = inspect.getsource(ray._private.worker)  # other tests may have muted them already
    assert "def listen_error_messages(" in source
    assert "target=listen_error_messages," in source
    before = ray._private.worker.listen_error_messages
    monkeypatch.setattr(ray._private.worker, "listen_error_messages", before)
    compat.mute_node_errors()
    assert ray._private.worker.listen_error_messages is not before


def test_this_process_is_no_client() -> None:
    assert compat.is_client() is False


@pytest.mark.parametrize("ask", [compat.ping_client_server, compat.cluster_metadata])
def test_requests_reach_an_address(ask) -> None:
    channel = compat.gcs_channel(f"127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(grpc.RpcError) as refused:
        ask(channel, 5.0)
    channel.close()
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


def test_versions_are_compared() -> None:
    own = compat.own_versions()
    assert own[0] == ray.__version__
    metadata = {"ray_version": own[0], "python_version": own[1]}
    compat.require_same_versions(metadata)
    with pytest.raises(RuntimeError):
        compat.require_same_versions(json.loads(json.dumps(metadata | {"ray_version": "1.0"})))


def test_a_search_with_a_progress_callback_gets_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.tune.utils.callback import _create_default_callbacks

    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")

    class Own(compat.progress_callback()):
        """As a search has one."""

    own, kind = Own(), compat.progress_callback()
    callbacks = _create_default_callbacks([own], air_verbosity=None)
    assert [callback for callback in callbacks if isinstance(callback, kind)] == [own]
    added = _create_default_callbacks([], air_verbosity=None)
    assert [type(callback) for callback in added if isinstance(callback, kind)] == [kind]


def test_a_trial_counts_its_failures() -> None:
    from ray.tune.experiment import Trial

    trial = Trial("trainable", stub=True)
    trial.storage = SimpleNamespace(trial_driver_staging_path=None)  # it writes no error file
    assert compat.times_failed(trial) == 0
    trial.handle_error(RuntimeError("died"))
    assert compat.times_failed(trial) == 1


def test_an_error_of_a_trial_is_told_from_a_lost_process(tmp_path: Path) -> None:
    from pyarrow.fs import LocalFileSystem
    from ray.exceptions import ActorDiedError, RayTaskError
    from ray.tune.experiment import Trial

    trial = Trial("trainable", stub=True)
    trial.storage = SimpleNamespace(
        trial_driver_staging_path=str(tmp_path),
        trial_fs_path=str(tmp_path),
        storage_filesystem=LocalFileSystem(),
    )
    assert compat.raised(trial) is None
    trial.handle_error(RayTaskError("train", "Traceback ...", KeyError("beta.value")))
    assert repr(compat.raised(trial)) == "KeyError('beta.value')"
    trial.handle_error(ActorDiedError())
    assert compat.raised(trial) is None


def test_uploads_are_limited_in_size() -> None:
    assert compat.upload_limit() >= 100 * 2**20


def test_files_that_are_not_uploaded_are_not_visited(tmp_path: Path) -> None:
    for name in ("code.py", "data.bin", "ignored.txt"):
        (tmp_path / name).touch()
    (tmp_path / ".gitignore").write_text("ignored.txt\n")
    seen: list[str] = []
    compat.visit_uploaded(tmp_path, ["/data.bin"], lambda path: seen.append(path.name))
    assert {"code.py", ".gitignore"} <= set(seen)
    assert not {"data.bin", "ignored.txt"} & set(seen)


@pytest.mark.parametrize("name", compat.UPLOAD_LOGGERS)
def test_the_modules_that_log_uploads_are_there(name: str) -> None:
    assert find_spec(name) is not None
    assert "logging.getLogger(__name__)" in Path(find_spec(name).origin).read_text()
