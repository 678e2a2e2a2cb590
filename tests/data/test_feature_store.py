"""The feature store: exact rows, every process, and everything it refuses."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

import relocal_pyg.data.features as hdf5
from relocal_pyg.data import FeatureStore, write_features
from relocal_pyg.data.features import UnsafeFeatureError, scan
from relocal_pyg.errors import FeatureError, OutputError, UsageError

ARRAYS = {
    f"video {number}": np.random.default_rng(number)
    .standard_normal((30 + 50 * number, 6))
    .astype(np.float32)
    for number in range(4)
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_features(tmp_path / "a.h5", ARRAYS.items())
    return tmp_path / "a.h5"


def one(path: Path, make: Callable[[h5py.Group], object], name: str = "v") -> Path:
    with h5py.File(path, "w") as file:
        make(file.create_group(name))
    return path


def test_every_row_comes_back(path: Path) -> None:
    store = FeatureStore(path)
    assert store.ids == sorted(ARRAYS)
    assert len(store) == 4
    assert store.dim == 6
    assert repr(store) == f"FeatureStore({str(path)!r}, key=None)"
    for name, array in ARRAYS.items():
        assert name in store
        assert store.num_steps(name) == len(array)
        values = store.read(name)
        assert values.dtype == torch.float32
        assert np.array_equal(values.numpy(), array)
        values += 1  # writable, and the next reader does not see it
    assert np.array_equal(store.read("video 1", 63, 66).numpy(), ARRAYS["video 1"][63:66])


@pytest.mark.slow
@given(data=st.data())
def test_ranges_and_subsampling_equal_slicing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "subsample.h5"
    if not path.exists():
        write_features(path, ARRAYS.items())
    every = data.draw(st.integers(1, 5))
    name = data.draw(st.sampled_from(sorted(ARRAYS)))
    wanted = ARRAYS[name][::every]
    store = FeatureStore(path, subsample=every)
    assert store.num_steps(name) == len(wanted)
    start = data.draw(st.integers(0, len(wanted) - 1))
    end = data.draw(st.integers(start + 1, len(wanted)))
    assert np.array_equal(store.read(name, start, end).numpy(), wanted[start:end])
    store.close()


@pytest.mark.parametrize("bounds", [(-1, 3), (3, 3), (4, 2), (0, 31), (30, None), (99, 100)])
def test_ranges_outside_the_video_are_refused(path: Path, bounds: tuple[int, int | None]) -> None:
    with pytest.raises(FeatureError, match="video 0: has 30 steps"):
        FeatureStore(path).read("video 0", *bounds)


def test_the_published_layout(tmp_path: Path) -> None:
    array = np.arange(10, dtype=np.float32)[:, None]
    one(tmp_path / "a.h5", lambda g: g.create_dataset("c3d_features", data=array), "v_abc")
    store = FeatureStore(tmp_path / "a.h5", subsample=2)
    assert store.ids == ["v_abc"]
    assert "abc" in store
    assert "v_abc" in store
    assert store.read("abc", 1, 4).flatten().tolist() == [2, 4, 6]
    write_features(tmp_path / "b.h5", [("abc", array)])
    assert "v_abc" in FeatureStore(tmp_path / "b.h5")


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ">f4"])
def test_floating_types_become_float32(tmp_path: Path, kind: object) -> None:
    array = np.array([[0.5, -2.0]]).astype(kind)
    one(tmp_path / "a.h5", lambda g: g.create_dataset("x", data=array))
    values = FeatureStore(tmp_path / "a.h5", key="x").read("v")
    assert values.tolist() == [[0.5, -2.0]]
    assert values.dtype == torch.float32


@pytest.mark.parametrize(
    "video_id", ["", ".", "..", "video 0/features", "video 0\0x", "a\ud800", "x" * 300, "none"]
)
def test_bad_ids_are_never_paths(path: Path, video_id: str) -> None:
    store = FeatureStore(path)
    assert video_id not in store
    with pytest.raises(FeatureError) as caught:
        store.read(video_id)
    assert str(path) in str(caught.value)
    assert "NoneType" not in str(caught.value)


def test_unicode_ids_work(tmp_path: Path) -> None:
    write_features(tmp_path / "a.h5", [("視頻 é", ARRAYS["video 0"])])
    assert np.array_equal(FeatureStore(tmp_path / "a.h5").read("視頻 é"), ARRAYS["video 0"])


@pytest.mark.parametrize("key", ["", ".", "..", "a/b", "a\0"])
def test_bad_keys(path: Path, key: str) -> None:
    with pytest.raises(UsageError):
        FeatureStore(path, key=key)


def test_bad_subsample(path: Path) -> None:
    with pytest.raises(UsageError):
        FeatureStore(path, subsample=0)


def test_unusable_files_are_named(tmp_path: Path, path: Path) -> None:
    (tmp_path / "empty.h5").write_bytes(b"")
    (tmp_path / "text.h5").write_text("not HDF5\n" * 1000)
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    h5py.File(tmp_path / "none.h5", "w").close()
    os.mkfifo(tmp_path / "pipe.h5")
    for name in ("missing.h5", "empty.h5", "text.h5", "cut.h5", "none.h5", "pipe.h5", ""):
        with pytest.raises(FeatureError) as caught:
            FeatureStore(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(FeatureError):
        FeatureStore(tmp_path / "a\0b")


def test_links_are_refused(tmp_path: Path, path: Path) -> None:
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["outside"] = h5py.ExternalLink(str(path), "video 0")
        file["soft"] = h5py.SoftLink("/loop")
        file["loop"] = h5py.SoftLink("/soft")
        file.create_group("inner")["c3d_features"] = h5py.ExternalLink(
            str(path), "video 0/features"
        )
    store = FeatureStore(tmp_path / "b.h5")
    for name in ("outside", "soft", "loop", "inner"):
        with pytest.raises(UnsafeFeatureError, match="links are not followed"):
            store.read(name)
    with pytest.raises(UnsafeFeatureError):
        list(scan(tmp_path / "b.h5", "c3d_features"))


def test_values_of_other_files_are_refused(tmp_path: Path, path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"0123456789abcdef")
    layout = h5py.VirtualLayout(shape=(30, 6), dtype="f4")
    layout[:] = h5py.VirtualSource(str(path), "video 0/features", shape=(30, 6))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_group("virtual").create_virtual_dataset("c3d_features", layout)
        file.create_group("external").create_dataset(
            "c3d_features", (4, 1), "f4", external=[(str(tmp_path / "secret"), 0, 16)]
        )
    store = FeatureStore(tmp_path / "b.h5")
    for name in ("virtual", "external"):
        with pytest.raises(UnsafeFeatureError, match="reads other files"):
            store.read(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"shape": (10**9, 1000), "chunks": (1000, 1000)},
        {"shape": (10**6, 500), "chunks": (64, 500)},
        {"shape": (5000, 5000), "chunks": (5000, 5000), "compression": "gzip", "fillvalue": 0},
        {"shape": (1, 1), "maxshape": (None, 1), "chunks": (2**26, 1)},
    ],
    ids=["terabytes", "nothing stored", "compressed", "one chunk"],
)
def test_bombs_are_refused_before_anything_is_allocated(
    tmp_path: Path, options: dict[str, object]
) -> None:
    def make(group: h5py.Group) -> None:
        data = group.create_dataset("c3d_features", dtype="f4", **options)
        if "compression" in options:
            data[:] = 0

    one(tmp_path / "a.h5", make)
    store = FeatureStore(tmp_path / "a.h5", max_bytes=1 << 40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnsafeFeatureError, match="declares"):
        store.read("v", 0, 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_the_cap_on_size(path: Path) -> None:
    with pytest.raises(UnsafeFeatureError, match="declares 4320 bytes, over 4000"):
        FeatureStore(path, max_bytes=4000).read("video 3")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda g: g.create_dataset("c3d_features", data=np.ones(3)), r"shape \(3,\)"),
        (lambda g: g.create_dataset("c3d_features", data=np.ones((2, 2, 2))), r"\(2, 2, 2\)"),
        (lambda g: g.create_dataset("c3d_features", data=h5py.Empty("f4")), "shape None"),
        (lambda g: g.create_dataset("c3d_features", data=np.ones((2, 2), int)), "int64"),
        (lambda g: g.create_dataset("c3d_features", data=np.ones((2, 2), complex)), "complex128"),
        (lambda g: g.create_dataset("c3d_features", data=[["a", "b"]]), "object"),
        (lambda g: g.create_dataset("c3d_features", (0, 4), "f4"), "holds no steps"),
        (lambda g: g.create_dataset("c3d_features", (4, 0), "f4"), "holds no steps"),
        (lambda g: g.create_dataset("other", data=np.ones((2, 2))), "it holds other"),
        (lambda g: g.create_group("c3d_features"), "is not a data set"),
    ],
)
def test_records_that_are_no_features(
    tmp_path: Path, make: Callable[[h5py.Group], object], reason: str
) -> None:
    one(tmp_path / "a.h5", make)
    store = FeatureStore(tmp_path / "a.h5")
    with pytest.raises(FeatureError, match=reason) as caught:
        store.read("v")
    assert not isinstance(caught.value, UnsafeFeatureError)
    assert caught.value.record == "v"
    assert caught.value.file == str(tmp_path / "a.h5")
    with pytest.raises(FeatureError, match=reason):
        _ = store.dim
    records = list(scan(tmp_path / "a.h5", "c3d_features"))
    assert len(records) == 1
    assert records[0] is not None
    assert records[0].problem


def test_a_data_set_where_a_group_should_be(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["v"] = np.ones((2, 2))
    with pytest.raises(FeatureError, match="is not a group"):
        FeatureStore(tmp_path / "a.h5").read("v")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_the_first_step_that_is_not_finite_is_named(tmp_path: Path, bad: float) -> None:
    array = np.ones((5000, 2))
    array[[4500, 4700], 1] = bad
    one(tmp_path / "a.h5", lambda g: g.create_dataset("c3d_features", data=array))
    store = FeatureStore(tmp_path / "a.h5")
    with pytest.raises(FeatureError, match="v: step 4500 is not finite"):
        store.read("v", 4400, 4600)
    assert store.read("v", 0, 4500).sum() == 9000
    unchecked = FeatureStore(tmp_path / "a.h5", check=False)
    assert not torch.isfinite(unchecked.read("v")).all()
    found = [record for record in scan(tmp_path / "a.h5", "c3d_features") if record]
    assert found[0].problem == "step 4500 is not finite"


def test_videos_of_another_width(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, width in (("a", 3), ("b", 3), ("c", 4)):
            file[f"{name}/c3d_features"] = np.ones((2, width))
    store = FeatureStore(tmp_path / "a.h5")
    assert store.dim == 3
    with pytest.raises(FeatureError, match="c: has 4 channels, other videos 3"):
        store.read("c")


def test_damage_is_found_by_checksum(path: Path) -> None:
    data = bytearray(path.read_bytes())
    needle = ARRAYS["video 2"][70].tobytes()
    at = data.find(needle)
    assert at > 0
    data[at] ^= 1
    path.write_bytes(data)
    store = FeatureStore(path)
    with pytest.raises(FeatureError, match="video 2: cannot be read"):
        store.read("video 2")
    assert np.array_equal(store.read("video 1"), ARRAYS["video 1"])
    problems = {record.name: record.problem for record in scan(path, "features") if record}
    assert [name for name, problem in problems.items() if problem] == ["video 2"]


@pytest.mark.slow
@pytest.mark.faults
def test_no_bit_flip_gives_wrong_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    rng = np.random.default_rng(0)
    array = rng.standard_normal((100, 8)).astype(np.float32)
    write_features(path, [("v", array)])
    data = path.read_bytes()
    silent = 0
    for bit in rng.choice(8 * len(data), size=300, replace=False):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << int(bit % 8)
        path.write_bytes(flipped)
        try:
            store = FeatureStore(path)
            if "v" in store:
                silent += not np.array_equal(store.read("v"), array)
            store.close()
        except FeatureError:
            pass
    assert silent == 0


class Rows(Dataset[torch.Tensor]):
    def __init__(self, store: FeatureStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return 200

    def __getitem__(self, number: int) -> torch.Tensor:
        name = sorted(ARRAYS)[number % 4]
        start = number % 25
        return self.store.read(name, start, start + 5)


def expected_rows() -> Iterator[np.ndarray]:
    for number in range(200):
        yield ARRAYS[sorted(ARRAYS)[number % 4]][number % 25 : number % 25 + 5]


@pytest.mark.slow
def test_forked_workers_read_the_right_rows(path: Path) -> None:
    store = FeatureStore(path)
    store.read("video 0")  # the handle is open when the workers are forked
    loader = DataLoader(Rows(store), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for rows, wanted in zip(loader, expected_rows(), strict=True):
        assert np.array_equal(rows, wanted)
    assert np.array_equal(store.read("video 0"), ARRAYS["video 0"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_start_anew_read_the_right_rows(path: Path, method: str) -> None:
    store = FeatureStore(path)
    store.read("video 0")
    with multiprocessing.get_context(method).Pool(1) as pool:
        rows = pool.map(store.read, sorted(ARRAYS))
    for values, name in zip(rows, sorted(ARRAYS), strict=True):
        assert np.array_equal(values, ARRAYS[name])


def test_pickling_leaves_the_handle_behind(path: Path) -> None:
    store = FeatureStore(path, subsample=2, check=False)
    store.read("video 0")
    copy = pickle.loads(pickle.dumps(store))
    assert np.array_equal(copy.read("video 1"), ARRAYS["video 1"][::2])
    assert copy.check is False


@pytest.mark.slow
def test_many_stores_and_reads_keep_few_files_open(path: Path) -> None:
    store = FeatureStore(path)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(500):
        store.read(sorted(ARRAYS)[number % 4], 0, 5)
    assert len(os.listdir("/proc/self/fd")) == before
    store.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1
    assert store.read("video 0").shape == (30, 6)


def test_writing_streams_and_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"

    def items() -> Iterator[tuple[str, object]]:
        for number in range(3):
            assert not path.exists()
            yield f"v{number}", [[number, 0.5]]

    assert write_features(path, items(), key="x") == 3
    assert FeatureStore(path, key="x").read("v2").tolist() == [[2.0, 0.5]]
    with h5py.File(path) as file:
        data = file["v0/x"]
        assert data.fletcher32
        assert data.dtype == np.float32
    write_features(path, [("w", np.zeros((200, 3)))], key=None)
    with h5py.File(path) as file:
        assert list(file) == ["w"]
        assert file["w/features"].chunks == (64, 3)


def test_tensors_of_any_kind_are_written(path: Path) -> None:
    rows = torch.rand(3, 2, requires_grad=True)
    write_features(path, [("a", rows), ("b", rows.bfloat16()), ("c", rows.detach().numpy()[::-1])])
    store = FeatureStore(path)
    assert torch.equal(store.read("a"), rows)
    assert torch.equal(store.read("b"), rows.bfloat16().float())
    assert torch.equal(store.read("c"), rows.flip(0))


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([], "no features"),
        ([("a", np.ones((2, 2))), ("a", np.ones((2, 2)))], "a: the id occurs twice"),
        ([("\xe9", np.ones((2, 2))), ("e\u0301 ", np.ones((2, 2)))], "the id occurs twice"),
        ([("a/b", np.ones((2, 2)))], "holds '/'"),
        ([("", np.ones((2, 2)))], "is empty"),
        ([("a", np.ones((2, 2))), ("b", np.ones((2, 3)))], "b: has 3 channels"),
        ([("a", np.ones(2))], "shape"),
        ([("a", np.ones((0, 2)))], "shape"),
        ([("a", np.ones((2, 2), complex))], "complex"),
        ([("a", [["x"]])], "numbers"),
        ([("a", [[1.0], [np.nan]])], "a: step 1 is not finite"),
        ([("a", [[1e300]])], "a: step 0 is not finite"),
        ([("a", [[1.0], [2.0, 3.0]])], "a: not an array of numbers"),
        ([("a", np.ma.masked_array(np.ones((2, 2)), np.eye(2)))], "a: .* masked"),
    ],
)
def test_writing_refuses_and_leaves_the_old_file(
    path: Path, items: list[tuple[str, object]], reason: str
) -> None:
    with pytest.raises(FeatureError, match=reason):
        write_features(path, items)
    assert FeatureStore(path).ids == sorted(ARRAYS)
    assert os.listdir(path.parent) == ["a.h5"]


def test_writing_where_nothing_can_be_written(path: Path) -> None:
    with pytest.raises(OutputError):
        write_features(path / "below.h5", ARRAYS.items())


def test_real_features(shared_data: Path) -> None:
    path = shared_data / "50salads" / "features.h5"
    store = FeatureStore(path)
    assert (len(store), store.dim) == (50, 28)
    lengths = [store.num_steps(name) for name in store.ids]
    assert (min(lengths), max(lengths)) == (212, 552)
    with h5py.File(path) as file:
        for name in store.ids[:5]:
            assert np.array_equal(store.read(name), file[name]["c3d_features"][()])


def test_reading_needs_no_torch() -> None:
    assert "torch" not in vars(hdf5)
