"""Places in object stores: addresses, objects, and what is said when something is wrong."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from helpers.machine import free_ports, kill
from helpers.s3_server import Server
from helpers.tree import HELPERS, ROOT, TESTS
from helpers.uploading import Breaking

from vamf.errors import StoreError
from vamf.redact import redacted
from vamf.store import Store, storage_path

SECRET = "hunter2hunter2"


def test_addresses_are_distinguished_from_folders(tmp_path: Path) -> None:
    for folder in (str(tmp_path), f"file://{tmp_path}", f"file:{tmp_path}"):
        assert storage_path(folder) == tmp_path
    assert storage_path("runs") == Path("runs").resolve()
    store = Store.of("s3://bucket/runs?region=eu-west-1")
    assert store is not None and storage_path(store.url) == store
    assert (store / "a" / "b").url == "s3://bucket/runs/a/b?region=eu-west-1"
    assert (store / "a").parent == store and (store / "a").name == "a"
    assert store.parent.parent == store.parent == Store("s3://bucket/?region=eu-west-1")
    # A path keeps one slash of two.
    url = "s3://bucket/runs?endpoint_override=http://127.0.0.1:5000"
    assert Store.of(str(Path(url))) == Store(url)
    for url in ("s3://", "s3:///x", "s3://key@/x"):
        with pytest.raises(ValueError, match="the address of a store must name its bucket; got s3"):
            Store.of(url)


@pytest.fixture(params=["s3", "fsspec"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A place in an S3 server, and in what an implementation of fsspec serves."""
    if request.param == "s3":
        server: Server = request.getfixturevalue("s3")
        return Store(server.url(f"{tmp_path.name}/here"))

    monkeypatch.setenv("UNDER", str(tmp_path))
    return Store(f"under://bucket/{tmp_path.name}")


def test_a_place_is_begun_once(store: Store) -> None:
    """Of several that begin at once at most one does, and nobody where something is."""
    barrier = Barrier(4)

    def begin(_: int) -> str | None:
        barrier.wait()
        try:
            return (store / "a").claim()
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(begin, range(4))]
    assert found.count(None) <= 1
    refused = f"{store / 'a'} exists; choose another --name, or --resume it"
    assert {*found} <= {None, refused}
    (store / "b").claim()
    (store / "b").write("run.json", b"{}")
    with pytest.raises(ValueError, match="exists; choose another --name"):
        (store / "b").claim()
    assert [name for name in (store / "b").names() if not name.startswith(".")] == ["run.json"]


def test_objects_are_written_listed_read_and_deleted(store: Store, tmp_path: Path) -> None:
    assert store.names() == [] and not store.exists()
    store.check()
    assert store.names() == []
    store.write("a/one", b"1")
    big, back = tmp_path / "big", tmp_path / "back"
    big.write_bytes(bytes(range(256)) * 50_000)
    store.upload(big, "a/big")
    store.write("ab", b"")
    assert store.names() == ["a/big", "a/one", "ab"] and (store / "a").names() == ["big", "one"]
    assert store.read("a/one") == b"1" and store.read("ab") == b""
    store.write("a/one", b"2")
    assert store.read("a/one") == b"2"
    store.download("a/big", back)
    assert back.read_bytes() == big.read_bytes()
    with pytest.raises(FileNotFoundError):
        store.read("a/two")
    with pytest.raises(FileNotFoundError):
        store.download("b/two", back)
    store.delete("a/one", "a/two")
    assert store.names() == ["a/big", "ab"]
    store.remove("a")
    store.remove("a")
    assert store.names() == ["ab"]


OLD = bytes(range(256)) * 80_000
"""20 MB: S3 takes it in parts."""


@pytest.fixture
def kept(store: Store, tmp_path: Path) -> Store:
    """A place that holds ``OLD`` by the name a/big."""
    (tmp_path / "breaking").write_bytes(OLD)
    store.upload(tmp_path / "breaking", "a/big")
    return store


def working(*arguments: object, ulimit: str = "unlimited") -> subprocess.Popen[str]:
    """A process that up- or downloads; it can write so many kB into a file."""
    script = HELPERS / "uploading.py"
    command = ["bash", "-c", f'ulimit -f {ulimit}; exec "$0" "$@"', sys.executable, str(script)]
    path = os.pathsep.join([str(ROOT), str(TESTS), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_whole(store: Store, tmp_path: Path) -> None:
    """The old object is there, alone, and gives way to the next one."""
    assert store.names() == ["a/big"] and store.read("a/big") == OLD
    new = tmp_path / "new"
    new.write_bytes(OLD[::-1])
    store.upload(new, "a/big")
    assert store.names() == ["a/big"] and store.read("a/big") == OLD[::-1]


def test_an_upload_whose_source_breaks_off_leaves_the_old_object(
    kept: Store, tmp_path: Path
) -> None:
    for name in ("a/big", "a/other"):
        with pytest.raises(StoreError, match="Input/output error"):
            kept.upload(Breaking(tmp_path / "breaking"), name)
    assert_whole(kept, tmp_path)


def test_a_process_that_ends_after_a_broken_upload_does_not_complete_it(
    kept: Store, tmp_path: Path
) -> None:
    process = working("upload", kept.url, "a/big", tmp_path / "breaking")
    _, reported = process.communicate(timeout=120)
    assert process.returncode == 1 and "Input/output error" in reported
    assert_whole(kept, tmp_path)


def test_an_upload_that_is_interrupted_before_its_first_byte_leaves_the_old_object(
    kept: Store, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt), kept._writing("a/big"):
        raise KeyboardInterrupt
    assert_whole(kept, tmp_path)


def test_a_process_killed_in_mid_upload_leaves_the_old_object(kept: Store, tmp_path: Path) -> None:
    source = tmp_path / "pipe"
    os.mkfifo(source)
    process = working("upload", kept.url, "a/big", source)
    with source.open("wb") as pipe:
        pipe.write(b"x" * 40_000_000)  # returns when all but the last pages have been read
        pipe.flush()
        kill({process.pid})
        process.communicate(timeout=120)
    assert process.returncode == -9
    assert_whole(kept, tmp_path)


def test_a_download_that_breaks_off_leaves_the_old_file(kept: Store, tmp_path: Path) -> None:
    """It is not allowed to write more than 5 MB."""
    target = tmp_path / "back"
    target.write_bytes(b"old")
    process = working("download", kept.url, "a/big", target, ulimit="5000")
    _, reported = process.communicate(timeout=120)
    assert process.returncode == 1 and "File too large" in reported
    assert target.read_bytes() == b"old" and not list(tmp_path.glob("*.partial"))
    kept.download("a/big", target)
    assert target.read_bytes() == OLD


@pytest.mark.slow  # patience with a server that is not there
def test_an_unusable_store_is_reported_in_one_line(s3: Server) -> None:
    address = f"endpoint_override={s3.address}&region=us-east-1"
    nobody = f"endpoint_override=http://127.0.0.1:{free_ports(1)[0]}&region=us-east-1"
    wrong = {
        "nothing://bucket/x": "Protocol not known: nothing",
        "sftp://host/x": "paramiko",
        "memory://bucket/x": "it would end with this process",
        f"s3://bucket/x?{address}&sas_token={SECRET}": "Unexpected query parameter",
        f"s3://key:{SECRET}@none/x?{address}": "NO_SUCH_BUCKET",
        f"s3://key:{SECRET}@bucket/x?{nobody}": "NETWORK_CONNECTION",
    }
    for url, why in wrong.items():
        store = Store.of(url)
        assert store is not None
        with pytest.raises(ValueError, match=why) as caught:
            store.check()
        assert "\n" not in str(caught.value) and SECRET not in str(caught.value)
        assert SECRET not in f"{store} {store!r}"
    with pytest.raises(StoreError, match="NETWORK_CONNECTION"):
        store.names()
    with pytest.raises(ValueError, match="the storage must answer; got "):
        store.exists()


def test_the_secrets_of_addresses_are_shown_to_nobody() -> None:
    for url in (
        f"s3://key:{SECRET}@bucket/x",
        f"s3:/key:{SECRET}@bucket/x",
        f"abfs://x?sas_token={SECRET}&y=1",
        f"az://x?y=1&sig={SECRET}",
        f"s3://x?aws_secret_access_key={SECRET}",
    ):
        assert SECRET not in redacted(f"cannot reach {url} now")
    plain = "s3://bucket/x?endpoint_override=http://127.0.0.1:5000&region=us-east-1"
    assert redacted(plain) == plain
