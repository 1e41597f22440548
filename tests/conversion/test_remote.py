"""Buckets: gcsfs, s3fs and TensorStore against stub servers, no network.

What the clients asked the servers for is the oracle: which files, which bytes, in which order.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from etils import epath
from fsspec.registry import _registry

from jax_mdlm import conversion
from jax_mdlm.config import ConfigError
from jax_mdlm.convert import main as convert
from jax_mdlm.storage import arrays, open_checkpoints, read_range
from tests.conversion.stubs import (
    FOLDER,
    GOLDEN,
    INDEX,
    KEPT,
    S3,
    WEIGHTS,
    CloudStorage,
    Reply,
    Request,
    Store,
    assert_golden,
    forget_clients,
    gcs_store,
    s3_store,
)


@pytest.fixture(autouse=True)
def nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A bucket that were taken for a relative path would appear in the current directory."""
    place = tmp_path / "current"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield
    assert not list(place.iterdir())


def header_size(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[CloudStorage]:
    with gcs_store({f"model/{name}": FOLDER[name] for name in FOLDER}, monkeypatch) as store:
        yield store


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with s3_store({f"model/{name}": FOLDER[name] for name in FOLDER}, monkeypatch) as store:
        yield store


@pytest.fixture(params=["gs", "s3"])
def bucket(request: pytest.FixtureRequest) -> tuple[Store, str]:
    """A bucket that holds a model, and its address."""
    kind: str = request.param
    return request.getfixturevalue({"gs": "gcs"}.get(kind, kind)), f"{kind}://bucket"


def reads(store: Store, file: str) -> list[Request]:
    """Requests for the content of an object; descriptions carry none."""
    asked = store.asked("GET", f"/{file}")
    return [seen for seen in asked if seen.query.get("alt") == "media" or isinstance(store, S3)]


def spans(store: Store, file: str) -> list[tuple[int, int | None]]:
    """The parts of an object that were asked for, sorted; a request for all of it is an error."""
    found = [seen.span for seen in reads(store, file)]
    assert None not in found
    return sorted(span for span in found if span is not None)


def test_a_bucket_is_imported_by_ranges(bucket: tuple[Store, str], tmp_path: Path) -> None:
    store, address = bucket
    convert(["import", f"{address}/model", str(tmp_path / "run")])
    for name, content in WEIGHTS.items():
        asked = spans(store, f"model/{name}")
        assert asked[:2] == [(0, 8), (8, header_size(content))]
        # Every byte once: each part begins where the one before it ends, and they reach the end.
        assert [first for first, _ in asked] == [0, *(last for _, last in asked[:-1])]
        assert asked[-1][1] == len(content)
        assert all(last is not None and last - first < len(content) / 2 for first, last in asked)
    assert {path.name for path in (tmp_path / "run" / "source").iterdir()} == set(KEPT)
    assert_golden(str(tmp_path / "run"))


def test_inspecting_a_bucket_reads_headers_only(
    bucket: tuple[Store, str], capsys: pytest.CaptureFixture[str]
) -> None:
    store, address = bucket
    convert(["inspect", f"{address}/model", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["tensors"], found["parameters"]) == (
        "published weights",
        21,
        90432,
    )
    assert found["files"] == sorted(WEIGHTS)
    for name, content in WEIGHTS.items():
        assert spans(store, f"model/{name}") == [(0, 8), (8, header_size(content))]


def test_only_the_rows_of_a_tensor_are_asked_for(bucket: tuple[Store, str]) -> None:
    store, address = bucket
    source = conversion.open_source(f"{address}/model")
    local = conversion.open_source(GOLDEN)
    name = "model.transformer.wte.weight"
    tensor = source.tensors[name]
    before = len(store.log)
    np.testing.assert_array_equal(tensor.rows(3, 5), local.tensors[name].rows(3, 5))
    # A set: a client that is kept waiting asks again.
    (span,) = {seen.span for seen in store.log[before:] if seen.path.endswith(tensor.file)}
    assert span is not None
    assert span[1] - span[0] == 2 * 64 * 4


def test_a_model_is_loaded_from_a_bucket(bucket: tuple[Store, str]) -> None:
    assert_golden(f"{bucket[1]}/model")


def test_an_export_into_a_bucket_ends_with_its_config(
    bucket: tuple[Store, str], tmp_path: Path
) -> None:
    store, address = bucket
    convert(["import", str(GOLDEN), str(tmp_path / "run")])
    kept = tmp_path / "run" / "source" / "modeling_llada.py"
    kept.write_bytes(KEPT["modeling_llada.py"])
    out = f"{address}/deep/out"
    convert(["export", str(tmp_path / "run"), out, "--dtype", "float32", "--shard-bytes", "100000"])
    names = [key.removeprefix("deep/out/") for key in store.written]
    assert names[:4] == [f"model-{number:05}-of-00004.safetensors" for number in range(1, 5)]
    assert names[-1] == "config.json"  # without it nothing loads: a killed export is no model
    assert set(names[4:-1]) == {"modeling_llada.py", *INDEX}
    assert store.objects["deep/out/modeling_llada.py"] == KEPT["modeling_llada.py"]
    assert_golden(out)
    with pytest.raises(ConfigError, match=rf"^{out} must be a new or empty folder, it is in use"):
        convert(["export", str(tmp_path / "run"), out])


def test_a_killed_export_into_a_bucket_is_no_model(gcs: CloudStorage) -> None:
    del gcs.objects["model/config.json"]
    for use in (conversion.open_source, conversion.inspect, conversion.load):
        with pytest.raises(
            ConfigError, match=r"^gs://bucket/model holds weights \(model.* without the config.json"
        ):
            use("gs://bucket/model")


# --- work directories in buckets ---


def test_a_work_directory_in_a_bucket(
    gcs: CloudStorage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Orbax and gcsfs write its descriptions, TensorStore the values: all end in the bucket."""
    convert(["import", "gs://bucket/model", "gs://bucket/run"])
    # The last thing that is written is what makes it usable.
    assert gcs.written[-1] == "run/config.json"
    assert "run/import_unfinished" in gcs.written
    assert "run/import_unfinished" not in gcs.objects
    for name, content in KEPT.items():
        assert gcs.objects[f"run/source/{name}"] == content
    stored = [key for key in gcs.objects if key.startswith("run/checkpoints/0/tree/params.")]
    values = [gcs.objects[key] for key in stored if not key.endswith(".zarray")]
    assert sum(map(len, values)) == 4 * 90432
    assert_golden("gs://bucket/run")
    capsys.readouterr()
    convert(["inspect", "gs://bucket/run", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["steps"]) == ("work directory, imported", [0])
    convert(["export", "gs://bucket/run", str(tmp_path / "out"), "--dtype", "float32"])
    assert_golden(str(tmp_path / "out"))


def test_an_import_into_a_bucket_that_was_killed_is_begun_again(gcs: CloudStorage) -> None:
    gcs.objects |= {"run/import_unfinished": b"", "run/checkpoints/0/tree/left": b"over"}
    with pytest.raises(ConfigError, match="gs://bucket/run holds an import that was not finished"):
        convert(["export", "gs://bucket/run", "out"])
    convert(["import", str(GOLDEN), "gs://bucket/run"])
    assert "run/checkpoints/0/tree/left" not in gcs.objects
    assert_golden("gs://bucket/run")
    with pytest.raises(ConfigError, match="gs://bucket/run must be new or empty for an import"):
        convert(["import", str(GOLDEN), "gs://bucket/run"])


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
def test_chunks_in_a_bucket_are_what_tensorstore_reads(
    gcs: CloudStorage, dtype: type[np.generic]
) -> None:
    place = epath.Path("gs://bucket/tree/array")
    values = np.arange(35).reshape(5, 7).astype(dtype)
    array = arrays.create(place, (5, 7), (2, 4), np.dtype(dtype))
    array.write((slice(0, 4), slice(0, 7)), values[:4])  # whole chunks, and some at the right edge
    array.write((slice(4, 5), slice(4, 7)), values[4:, 4:])
    array.write((slice(4, 5), slice(0, 4)), values[4:, :4])
    files = {key for key in gcs.objects if key.startswith("tree/array/")}
    assert files == {
        f"tree/array/{name}" for name in (".zarray", "0.0", "0.1", "1.0", "1.1", "2.0", "2.1")
    }
    stored = arrays.open_arrays(epath.Path("gs://bucket/tree"), ["array"])["array"]
    assert (stored.shape, stored.dtype) == ((5, 7), np.dtype(dtype))
    out = np.zeros((3, 4), dtype)
    stored.read((slice(1, 4), slice(2, 6)), out)
    np.testing.assert_array_equal(out, values[1:4, 2:6])
    del gcs.objects["tree/array/1.1"]
    with pytest.raises(ValueError, match="missing"):
        stored.read((slice(2, 3), slice(4, 5)), np.zeros((1, 1), dtype))


def test_checkpoints_of_a_run_in_a_bucket(gcs: CloudStorage) -> None:
    """Training packs its arrays (OCDBT); the oldest goes, the newest comes back."""
    folder = epath.Path("gs://bucket/trained/checkpoints")
    tree = {"params": {"wte": jnp.arange(12.0).reshape(3, 4), "q_proj": jnp.ones((2, 3, 4))}}
    checkpoints = open_checkpoints(folder, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, jax.tree.map(lambda leaf, by=step: leaf + by, tree), {"at": step})
        checkpoints.wait()
    checkpoints.close()
    assert not any(key.startswith("trained/checkpoints/1/") for key in gcs.objects)
    forget_clients()  # a later process has no listings
    again = open_checkpoints(folder)
    assert (again.steps(), again.record(3)) == ([2, 3], {"at": 3})
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree
    )
    restored = again.restore(3, abstract)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 3), restored, tree)
    again.close()


# --- what goes wrong ---


def _inspect(path: str) -> object:
    return conversion.inspect(path)


def _import(path: str) -> object:
    return convert(["import", path, "run"])


@pytest.mark.parametrize("use", [_inspect, _import, conversion.load, conversion.open_origin])
@pytest.mark.parametrize("status", [401, 403])
def test_a_bucket_that_refuses(
    gcs: CloudStorage, status: int, use: Callable[[str], object]
) -> None:
    text = {"error": {"code": status, "message": "no storage.objects.get access"}}
    gcs.refusal = Reply(status, json.dumps(text).encode())
    with pytest.raises(
        ConfigError,
        match=r"^gs://bucket/model cannot be used \([^\n]*no storage.objects.get access[^\n]*\); "
        "correct the path, check your access and the network$",
    ):
        use("gs://bucket/model")


@pytest.mark.parametrize("use", [_import, conversion.load])
def test_a_bucket_that_refuses_while_it_is_read(
    gcs: CloudStorage, use: Callable[[str], object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer = gcs.answer

    def refuse_values(request: Request) -> Reply:
        late = request.span is not None and request.span[0] > 50_000
        return Reply(403, b'{"error": {"message": "expired"}}') if late else answer(request)

    monkeypatch.setattr(gcs, "answer", refuse_values)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"^gs://bucket/model/model-0000\d-of-00002.safetensors cannot be used \(Forbidden",
    ):
        use("gs://bucket/model")


def test_a_bucket_that_is_not_there(bucket: tuple[Store, str], tmp_path: Path) -> None:
    store, address = bucket
    missing = address.replace("bucket", "another")
    with pytest.raises(ConfigError, match=rf"^{missing}/model must be a folder with config.json"):
        conversion.open_source(f"{missing}/model")
    convert(["import", str(GOLDEN), str(tmp_path / "run")])
    with pytest.raises(ConfigError, match=rf"^{missing}/out must take [\d,]+ bytes, but [^\n]*$"):
        convert(["export", str(tmp_path / "run"), f"{missing}/out"])
    # A misspelt name must not become a new bucket.
    assert not [seen for seen in store.log if seen.method == "PUT" and seen.path == "/another"]


def test_an_import_into_a_bucket_that_is_not_there(gcs: CloudStorage) -> None:
    with pytest.raises(ConfigError, match=r"^gs://another/run cannot be used \("):
        convert(["import", str(GOLDEN), "gs://another/run"])


def test_a_client_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for name in ("gs", "gcs"):
        monkeypatch.delitem(_registry, name, raising=False)  # of classes that were imported
    forget_clients()
    needed = r"^gs://bucket/model needs packages that are not installed \(.*gcsfs.*\); pip "
    with pytest.raises(ConfigError, match=needed + r"install -e '.*\[cloud\]'$"):
        conversion.load("gs://bucket/model")


def test_a_range_of_a_local_file(tmp_path: Path) -> None:
    path = epath.Path(tmp_path / "a::b")  # the mark of chained addresses in fsspec
    path.write_bytes(b"0123456789")
    assert read_range(path, 3, 6) == b"345"
    assert read_range(path, 3, 3) == b""
