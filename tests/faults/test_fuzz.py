"""Spoilt files of every format: a result, or an error of the package; never anything else."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from mutations import mutate

from relocal_pyg.data import write_features
from relocal_pyg.data.annotations import Quarantine, read_activitynet, read_csv, read_thumos14
from relocal_pyg.data.checks import probe_features
from relocal_pyg.data.items import Item
from relocal_pyg.data.pairs import PairList, make_pairs
from relocal_pyg.data.proposals import read_proposal_list
from relocal_pyg.datasets.activitynet import read_permutation
from relocal_pyg.errors import FeatureError, RelocalError
from relocal_pyg.io.read import read_array
from relocal_pyg.io.record import sha256_file, write_manifest
from relocal_pyg.models import ContrastMatcher, VideoLevel, load_model
from relocal_pyg.search import SearchIndex, build_index
from relocal_pyg.search.storage import ShardList, fingerprint
from relocal_pyg.training.loop import Progress, load_state, save_state
from relocal_pyg.video.c3d import C3D
from relocal_pyg.video.pca import PCA

pytestmark = pytest.mark.faults

#: Seconds after which a reader counts as hanging.
LIMIT = 10


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    def ring(*details: object) -> None:
        raise AssertionError(f"hangs for over {LIMIT} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


Read = Callable[[], object]


def annotations(folder: Path) -> tuple[Path, Read]:
    rows = [{"segment": [1.5, 4], "label": "run"}, {"segment": [5, 9], "label": "jump"}]
    database = {name: {"duration": 12.5, "subset": "x", "annotations": rows} for name in "abc"}
    (folder / "a.json").write_text(json.dumps({"database": database}, indent=1))
    return folder / "a.json", lambda: read_activitynet(folder / "a.json", quarantine=Quarantine())


def table(folder: Path) -> tuple[Path, Read]:
    lines = ["video,start,end,label,duration,subject"]
    lines += [f'v{number},{number},{number + 2.5},"run, jump",20,p{number}' for number in range(5)]
    (folder / "a.csv").write_text("\n".join(lines))
    return folder / "a.csv", lambda: read_csv(folder / "a.csv", quarantine=Quarantine())


def thumos(folder: Path) -> tuple[Path, Read]:
    place, durations = folder / "Run_test.txt", folder / "durations.txt"
    durations.write_text("v0.mp4\n20.0\nv1.mp4\n30\n")
    place.write_text("v0 1.0 2.0\nv1 3.0 9.5\nv1 0.0 1.0\n")
    return place, lambda: read_thumos14(folder, durations, quarantine=Quarantine())


def proposals(folder: Path) -> tuple[Path, Read]:
    text = "# 1\nabc\n300\n25\n1\n7 0.1 0.4\n2\n7 0.5 1.0 0.1 0.25\n0 0.1 0.2 0.3 0.5\n"
    (folder / "a.txt").write_text(text + text.replace("abc", "xyz"))
    return folder / "a.txt", lambda: read_proposal_list(folder / "a.txt")


def pair_list(folder: Path) -> tuple[Path, Read]:
    items = [Item(f"v{n}#0", f"v{n}", "ab"[n % 2], (0, 20), (3, 9), ((3, 9),)) for n in range(6)]
    make_pairs(items, split="x", protocol="y").save(folder / "a.json")
    return folder / "a.json", lambda: PairList.load(folder / "a.json")


def features_npy(folder: Path) -> tuple[Path, Read]:
    np.save(folder / "a.npy", np.random.default_rng(0).standard_normal((9, 4)))
    return folder / "a.npy", lambda: read_array(folder / "a.npy", FeatureError)


def permutation(folder: Path) -> tuple[Path, Read]:
    np.save(folder / "a.npy", np.arange(20))
    return folder / "a.npy", lambda: read_permutation(folder / "a.npy")


def pca(folder: Path) -> tuple[Path, Read]:
    PCA(torch.zeros(4), torch.eye(4)[:2], torch.ones(2)).save(folder / "a.safetensors")
    return folder / "a.safetensors", lambda: PCA.load(folder / "a.safetensors")


def trusted(folder: Path, read: Read, kind: str = "model") -> Read:
    """A folder whose manifest was forged to fit: the files behind it are looked at."""

    def forged() -> object:
        write_manifest(folder, kind)
        return read()

    return forged


def weights(folder: Path) -> tuple[Path, Read]:
    VideoLevel(4, 2).save(folder / "m")
    return folder / "m" / "model.safetensors", trusted(
        folder / "m", lambda: load_model(folder / "m")
    )


def config(folder: Path) -> tuple[Path, Read]:
    VideoLevel(4, 2).save(folder / "m")
    return folder / "m" / "config.json", trusted(folder / "m", lambda: load_model(folder / "m"))


def manifest(folder: Path) -> tuple[Path, Read]:
    VideoLevel(4, 2).save(folder / "m")
    return folder / "m" / "manifest.json", lambda: load_model(folder / "m")


def training_state(name: str) -> Callable[[Path], tuple[Path, Read]]:
    def make(folder: Path) -> tuple[Path, Read]:
        model = VideoLevel(4, 2)
        optimizer = torch.optim.Adam(model.parameters())
        sum(parameter.sum() for parameter in model.parameters()).backward()
        optimizer.step()
        save_state(folder / "last", model, optimizer, Progress(step=3), {"seed": 0})

        def read() -> object:
            fresh = VideoLevel(4, 2)
            adam = torch.optim.Adam(fresh.parameters())
            return load_state(folder / "last", fresh, adam, {"seed": 0})

        return folder / "last" / name, trusted(folder / "last", read, "checkpoint")

    return make


def index_list(folder: Path) -> tuple[Path, Read]:
    rows = np.random.default_rng(0).standard_normal((20, 4))
    build_index(folder / "i", ContrastMatcher(), [("v", rows, 1.0), ("w", rows[:9], 0.5)])
    return folder / "i" / "index.json", lambda: SearchIndex(folder / "i", ContrastMatcher())


def index_shard(name: str) -> Callable[[Path], tuple[Path, Read]]:
    """A file of a shard, behind a manifest and a list of shards forged to fit."""

    def make(folder: Path) -> tuple[Path, Read]:
        index_list(folder)
        index, model = folder / "i", ContrastMatcher()
        listed = ShardList.load(index, fingerprint(model))

        def forged() -> object:
            write_manifest(index / "shard-00000", "shard")
            digest = sha256_file(index / "shard-00000" / "manifest.json")
            listed.shards[0] = dataclasses.replace(listed.shards[0], manifest=digest)
            listed.save(index)
            return SearchIndex(index, model)

        return index / "shard-00000" / name, forged

    return make


def published_weights(folder: Path) -> tuple[Path, Read]:
    torch.save({"conv1.weight": torch.ones(3)}, folder / "a.pt")
    network = C3D(num_features=2)
    return folder / "a.pt", lambda: network.load_weights(folder / "a.pt")


#: Format, how to make a sound file of it and read it, whether it is text, cases of a full run.
FORMATS: dict[str, tuple[Callable[[Path], tuple[Path, Read]], bool, int]] = {
    "annotations": (annotations, True, 800),
    "CSV": (table, True, 500),
    "THUMOS14": (thumos, True, 500),
    "proposal list": (proposals, True, 700),
    "pair list": (pair_list, True, 500),
    "features npy": (features_npy, False, 400),
    "permutation npy": (permutation, False, 300),
    "PCA safetensors": (pca, False, 300),
    "weights safetensors": (weights, False, 300),
    "config": (config, True, 300),
    "manifest": (manifest, True, 200),
    "state pt": (training_state("state.pt"), False, 400),
    "progress": (training_state("progress.json"), True, 300),
    "list of shards": (index_list, True, 200),
    "shard": (index_shard("shard.json"), True, 150),
    "shard npy": (index_shard("proposals.npy"), False, 150),
    "published weights pt": (published_weights, False, 400),
}
HDF5_CASES, STRUCTURED_CASES = 3000, 600


def test_a_full_run_is_ten_thousand_cases():
    assert sum(cases for *_, cases in FORMATS.values()) + HDF5_CASES + STRUCTURED_CASES == 10_000


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_spoilt_file_is_read_or_refused(tmp_path: Path, count, figure, name: str):
    make, text, cases = FORMATS[name]
    file, read = make(tmp_path)
    if name != "published weights pt":  # a sound one would be of 100 MB
        read()
    sound, cases, refused, wrong = file.read_bytes(), count(max(10, cases // 25), cases), 0, {}
    for case in range(cases):
        data = mutate(sound, np.random.default_rng([7, case]), text)
        file.write_bytes(data)
        try:
            with time_limit(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read()
        except RelocalError:
            refused += 1
        except Exception as error:
            wrong.setdefault(repr(error)[:200], data[:2000])
    figure("fuzz", f"{name}: {cases} cases, {refused} refused, {len(wrong)} uncaught or hanging")
    assert not wrong
    assert refused


TEXT, PAIR = st.text(max_size=8), st.lists(st.floats(), min_size=2, max_size=2)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
ROW = st.fixed_dictionaries({}, optional={"segment": JSON | PAIR, "label": JSON})
ROWS = st.lists(ROW | JSON, max_size=3)
ENTRIES = JSON | st.fixed_dictionaries(
    {}, optional={"duration": JSON, "annotations": ROWS, "subset": JSON, "subject": JSON}
)


@pytest.fixture(scope="module")
def drafts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drafts")


@pytest.mark.slow
@given(st.dictionaries(st.text(st.characters(codec=None), max_size=6), ENTRIES, max_size=4))
@settings(
    max_examples=STRUCTURED_CASES if os.environ.get("RELOCAL_FAULTS") == "full" else 40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_annotations_of_any_shape_are_read_or_refused(drafts: Path, database: dict):
    file = drafts / "a.json"
    file.write_text(json.dumps({"database": database}))
    for options in ({}, {"clip": True}, {"as_published": True}):
        with contextlib.suppress(RelocalError):
            videos = read_activitynet(file, quarantine=Quarantine(), **options)
            for video in videos.values():
                for segment in video.segments:
                    assert isinstance(segment.label, str)
                    assert np.isfinite([segment.start, segment.end]).all()


def lines_of(child: subprocess.Popen[bytes]) -> Iterator[str | None]:
    """Lines of a child; None where it says nothing for too long."""
    assert child.stdout is not None
    pending = b""
    while True:
        if not select.select([child.stdout], [], [], LIMIT)[0]:
            yield None
            return
        data = os.read(child.stdout.fileno(), 1 << 16)
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        yield from (line.decode() for line in lines)


@pytest.mark.slow
def test_spoilt_feature_files_hurt_only_the_child_process(tmp_path: Path, count, figure):
    rng, sound, spoilt = np.random.default_rng(0), tmp_path / "a.h5", tmp_path / "b.h5"
    write_features(sound, ((f"v{n}", rng.standard_normal((70, 4))) for n in range(3)))
    cases, case, crashed, hung, uncaught = count(120, HDF5_CASES), 0, 0, 0, []
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parents[1])])
    while case < cases:
        command = [sys.executable, str(here / "fuzz_hdf5.py"), str(sound)]
        command += [str(case), str(cases), str(spoilt)]
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        ) as child:
            silent = False
            for line in lines_of(child):
                silent = line is None
                if line is not None and line.startswith("uncaught"):
                    uncaught.append(f"case {case}: {line}")
                elif line:
                    case = int(line)
            child.kill()
            child.wait()
        if child.returncode == 0 and not silent:
            break
        # This very file is one that the command may meet: it is refused, and nothing else happens.
        hung, crashed = hung + silent, crashed + (not silent)
        with pytest.raises(FeatureError, match="hangs|crashes"):
            probe_features(spoilt, time_limit=2)
        case += 1
    figure(
        "fuzz",
        f"HDF5: {cases} cases, {crashed} crashed and {hung} hung the child process alone, "
        f"{len(uncaught)} uncaught",
    )
    assert uncaught == []
