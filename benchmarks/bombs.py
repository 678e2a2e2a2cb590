"""Bombs of ten kinds, and ten thousand mutations: for ``benchmarks.reliability``."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
#: MB over a sound file of the kind, MB written, and seconds of the processor that a bomb may take;
#: seconds until a command that meets one has ended when told to; seconds a mutated file may take.
MOST_MEMORY, MOST_WRITTEN, MOST_SECONDS, MOST_ENDING, MOST_MUTATION = 300, 64, 60, 2, 10

#: A command that meets a sound file, then those that each meet a bomb. What makes them writes the
#: files into the current folder.
Commands = list[tuple[str, list[str]]]
_SLOT = "<TIME_SLOT TIME_SLOT_ID='{0}' TIME_VALUE='{0}000'/>"
_ORDER = f"<TIME_ORDER>{_SLOT.format(1)}{_SLOT.format(2)}</TIME_ORDER><TIER TIER_ID='t'>"
_LABELS: dict[str, Any] = {"type": "timelinelabels", "value": {"timelinelabels": ["a"] * 10**5}}


def film(name: str, times: list[float], codec: str = "mpeg4", rate: int = 10) -> bytes:
    """A small film whose pictures appear at these seconds."""
    import av

    base = Fraction(1, 1_000_000) if rate > 1000 else Fraction(1, 1000)
    with av.open(name, "w") as output:
        stream = output.add_stream(codec, rate=rate)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "rgb24" if codec in ("png", "rawvideo") else "yuv420p"
        stream.codec_context.time_base = base
        for number, time_ in enumerate(times):
            level = np.full((48, 64, 3), 8 * number % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(level, format="rgb24")
            frame.pts, frame.time_base = round(time_ / base), base
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return Path(name).read_bytes()


def sized(data: bytes, head: bytes, side: int) -> bytes:
    """A picture or film whose header says that each side has so many pixels."""
    at = data.index(head) + len(head)
    if head == b"IHDR":
        fields = head + side.to_bytes(4, "big") * 2 + data[at + 8 : at + 13]
        return data[: at - 4] + fields + zlib.crc32(fields).to_bytes(4, "big") + data[at + 17 :]
    size = side.to_bytes(2, "big" if head == b"mp4v" else "little") * 2
    at += 24 if head == b"mp4v" else 0
    return data[:at] + size + data[at + 4 :]


def png(side: int) -> bytes:
    """A real picture of one colour, far smaller than its pixels."""
    fields = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(3 * side + 1)) for _ in range(side)) + packer.flush()
    chunks = ((b"IHDR", fields), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
        for name, data in chunks
    )


def tensors(header: bytes, length: int | None = None, stored: int = 0) -> bytes:
    """A safetensors file of this header."""
    return (
        (len(header) if length is None else length).to_bytes(8, "little") + header + bytes(stored)
    )


def array(shape: object, kind: object = "<f4", stored: int = 4000, header: str = "") -> bytes:
    """An array file whose header says so, with few bytes behind it."""
    text = header or repr({"descr": kind, "fortran_order": False, "shape": shape})
    packed = text.encode() + b" " * (63 - (len(text) + 12) % 64) + b"\n"
    return b"\x93NUMPY\x02\x00" + len(packed).to_bytes(4, "little") + packed + bytes(stored)


def zipped(name: str, member: str, size: int, copies: int = 1) -> None:
    """An archive that grows a thousandfold."""
    with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for number in range(copies):
            with archive.open(member if copies == 1 else f"{number}/{member}", "w") as stream:
                for _ in range(size >> 20):
                    stream.write(bytes(1 << 20))


def sparse(name: str, head: bytes, size: int) -> None:
    """A file that begins so, is so long, and holds nothing more."""
    Path(name).write_bytes(head)
    os.truncate(name, size)


def films() -> Commands:
    """Declared sizes, rates and lengths of films."""
    seconds = [number / 10 for number in range(60)]
    sound = film("sound.mp4", seconds)
    film("hours.mkv", [3600.0 * number for number in range(60)])
    film("fast.mov", [number / 1e6 for number in range(3000)], "png", 65_536)
    Path("size.mp4").write_bytes(sized(sound, b"mp4v", 60_000))
    raw = film("raw.avi", seconds[:3], "rawvideo")
    at = raw.index(b"strf") + 12
    forged = raw[:at] + (30_000).to_bytes(4, "little") * 2 + raw[at + 8 :]
    Path("raw.avi").write_bytes(forged)
    at = sound.index(b"mdhd") + 16  # units a second, and units in all
    forged = sound[:at] + (1).to_bytes(4, "big") + b"\x7f\xff\xff\xff" + sound[at + 8 :]
    Path("years.mp4").write_bytes(forged)
    bombs = ("size.mp4", "raw.avi", "years.mp4", "hours.mkv", "fast.mov")
    return [(name, ["find", "sound.mp4", name]) for name in ("sound.mp4", *bombs)]


def pictures() -> Commands:
    """Pictures far larger than their files."""
    film("sound.mp4", [number / 10 for number in range(60)])
    Path("sound.png").write_bytes(png(64))
    Path("true.png").write_bytes(png(20_000))
    Path("said.png").write_bytes(sized(png(64), b"IHDR", 100_000))
    gif = b"GIF89a\xff\xff\xff\xff\xf7\0\0" + bytes(768)  # 65,535 to a side, 256 colours
    frame = b"\x21\xf9\x04\0\x01\0\0\0\x2c\0\0\0\0\xff\xff\xff\xff\0\x08\x02\x4c\x01\0"
    Path("canvas.gif").write_bytes(gif + frame * 2000 + b";")
    bitmap = b"BM" + bytes(8) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
    bitmap += (30_000).to_bytes(4, "little") * 2 + b"\1\0\x18\0" + bytes(24)
    Path("said.bmp").write_bytes(bitmap)
    bombs = ("true.png", "said.png", "canvas.gif", "said.bmp")
    command = ["find", "--query-image"]
    return [(name, [*command, name, "sound.mp4"]) for name in ("sound.png", *bombs)]


def hdf5() -> Commands:
    """Feature files that declare, pack or count too much."""
    import h5py

    def made(name: str, fill: Callable[[Any], object]) -> None:
        with h5py.File(name, "w") as file:
            fill(file)

    made("sound.h5", lambda f: f.create_dataset("v/features", data=np.eye(40, 8, dtype="f4")))
    shape = {"shape": (10**9, 8), "dtype": "f4", "chunks": (64, 8)}
    made("shape.h5", lambda f: f.create_dataset("v/features", **shape))
    zeros = {"data": np.zeros((1_500_000, 16), "f4"), "compression": "gzip"}
    made("packed.h5", lambda f: f.create_dataset("v/features", **zeros))
    chunk = {"shape": (10, 8), "maxshape": (None, 8), "chunks": (100_000_000, 8), "dtype": "f4"}
    made("chunk.h5", lambda f: f.create_dataset("v/features", **chunk))
    made("many.h5", lambda f: [f.create_group(f"v{number}") for number in range(20_000)])
    names = ("sound.h5", "shape.h5", "packed.h5", "chunk.h5", "many.h5")
    return [(name, ["find", f"{name}::v", f"{name}::v"]) for name in names]


def arrays() -> Commands:
    """Arrays whose header says more than the file holds."""
    np.save("sound.npy", np.eye(40, 8, dtype="f4"))
    Path("shape.npy").write_bytes(array((10**15, 8)))
    Path("deep.npy").write_bytes(array((), header="(" * 9000))
    sparse("long.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", 5 << 30)
    sparse("holes.npy", array((1 << 27, 8)), (4 << 30) + 128)
    Path("types.npy").write_bytes(array((1,), [("a", f"<{1 << 30}f4")]))
    names = ("sound.npy", "shape.npy", "deep.npy", "long.npy", "holes.npy", "types.npy")
    return [(name, ["find", name, name]) for name in names]


def weights() -> Commands:
    """Safetensors: headers that are long, deep or false."""
    import torch

    from relocal_pyg.video.pca import PCA

    film("sound.mp4", [number / 10 for number in range(60)])
    none = '"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    PCA(torch.zeros(1280), torch.eye(4, 1280), torch.ones(4)).save("sound.safetensors")
    many = ",".join(none % number for number in range(1_000_000))
    Path("many.safetensors").write_bytes(tensors(f"{{{many}}}".encode()))
    words = ",".join(f'"k{number}":"v"' for number in range(6_000_000))
    Path("told.safetensors").write_bytes(tensors(f'{{"__metadata__":{{{words}}}}}'.encode()))
    Path("deep.safetensors").write_bytes(tensors(b'{"a":' * 15_000_000))
    sparse("long.safetensors", tensors(b"{", length=1 << 60), 1 << 34)
    mean = {"dtype": "F32", "shape": [1 << 34], "data_offsets": [0, 1 << 36]}
    head = tensors(json.dumps({"mean": mean}).encode())
    sparse("holes.safetensors", head, (1 << 36) + len(head))
    names = ("sound", "many", "told", "deep", "long", "holes")
    command = ["find", "sound.mp4", "sound.mp4", "--pca"]
    return [(name, [*command, f"{name}.safetensors"]) for name in names]


def converted(sound: str, bombs: Iterable[str]) -> Commands:
    """Commands that turn annotations into a table."""
    options = ["--fps", "25", "--point-width", "1", "--out", "out.csv"]
    return [(name, ["convert", name, *options]) for name in (sound, *bombs)]


def json_files() -> Commands:
    """JSON of any kind, and products inside it."""
    row = '{"segment":[1,2],"label":"a"}'
    whole = '{"database":{"v":{"duration":9,"annotations":[%s]}}}'
    Path("sound.json").write_text(whole % row)
    Path("lists.json").write_text(whole % ",".join(["[]"] * 1_300_000))
    Path("numbers.json").write_text(whole % ",".join("0" * 4_500_000))
    Path("deep.json").write_text("[" * 30_000_000)
    rows = (f'{{"segment":[{n},{n + 1}],"label":"a"}}' for n in range(249_000))
    Path("rows.json").write_text(whole.replace("9", "999999") % ",".join(rows))
    _LABELS["value"]["ranges"] = [{"start": 1, "end": 9}] * 10**5
    task = {"data": {"video": "v.mp4"}, "annotations": [{"result": [_LABELS]}]}
    Path("product.json").write_text(json.dumps([task]))
    bombs = ("lists", "numbers", "deep", "rows", "product")
    return converted("sound.json", [f"{name}.json" for name in bombs])


def tables() -> Commands:
    """Tables of many rows, cells, or letters in one."""
    head = "video,start,end,label"
    Path("sound.csv").write_text(f"{head}\nv,1,2,a\n")
    Path("rows.csv").write_text(f"{head}\n" + "v,1,2,a\n" * 8_000_000)
    Path("blank.csv").write_text(f"{head}\n" + "\n" * 64_000_000)
    Path("cells.csv").write_text(f"{head}{',a' * 990}\n" + ("v,1,2,a" + "," * 990 + "\n") * 60_000)
    Path("quote.csv").write_text(f'{head}\nv,1,2,"' + "a\n" * 30_000_000)
    blanks = "player #1:a" + " " * 130_000 + "b"
    head = "Observation id\tSource\tBehavior\tBehavior type\tStart (s)\tStop (s)\tMedia file name\n"
    Path("blanks.tsv").write_text(f"{head}o\t{blanks}\tx\tSTATE\t1\t2\tv.mp4\n")
    return converted("sound.csv", ("rows.csv", "blank.csv", "cells.csv", "quote.csv", "blanks.tsv"))


def xml() -> Commands:
    """XML of many elements, attributes, entities, or links from one to the next."""
    whole = "<ANNOTATION_DOCUMENT><HEADER/>%s</ANNOTATION_DOCUMENT>"
    act = "<ANNOTATION><{0}_ANNOTATION ANNOTATION_ID='{1}' {2}>{3}</{0}_ANNOTATION></ANNOTATION>"
    value = "<ANNOTATION_VALUE>a</ANNOTATION_VALUE>"
    first = act.format("ALIGNABLE", 0, "TIME_SLOT_REF1='1' TIME_SLOT_REF2='2'", value)
    Path("sound.eaf").write_text(whole % f"{_ORDER}{first}</TIER>")
    Path("elements.eaf").write_text(whole % ("<a/>" * 12_000_000))
    told = " ".join(f'b{number}="1"' for number in range(3_000_000))
    Path("attributes.eaf").write_text(whole % f"<a {told}/>")
    links = "".join(act.format("REF", n, f"ANNOTATION_REF='{n + 1}'", "") for n in range(300_000))
    Path("links.eaf").write_text(whole % f"{_ORDER}{links}</TIER>")
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    Path("entities.eaf").write_text(f'<!DOCTYPE a [<!ENTITY e0 "a">{entities}]><a>&e11;</a>')
    return converted(
        "sound.eaf", [f"{n}.eaf" for n in ("elements", "attributes", "links", "entities")]
    )


def archives() -> Commands:
    """Archives under the names of other files."""
    import torch

    film("sound.mp4", [number / 10 for number in range(60)])
    zipped("grown.npz", "a.npy", 1 << 30)
    zipped("grown.npy", "a.npy", 1 << 30)
    zipped("grown.pt", "archive/data.pkl", 1 << 30)
    zipped("many.pt", "data.pkl", 0, copies=100_000)
    zipped("grown.safetensors", "a", 1 << 30)
    find = ["find", "sound.mp4", "sound.mp4"]
    c3d = [*find, "--backbone", "c3d", "--weights"]
    torch.save({"a": torch.ones(1)}, "sound.pt")  # refused once the network is there
    return [
        ("sound.pt", [*c3d, "sound.pt"]),
        *((name, ["find", name, name]) for name in ("grown.npz", "grown.npy")),
        *((name, [*c3d, name]) for name in ("grown.pt", "many.pt")),
        ("grown.safetensors", [*find, "--pca", "grown.safetensors"]),
    ]


def indexes() -> Commands:
    """Lists, shards and manifests with sound checksums and endless content."""
    from relocal_pyg.io.record import sha256_file, write_manifest
    from relocal_pyg.models import ContrastMatcher
    from relocal_pyg.search import build_index
    from relocal_pyg.search.storage import ListedShard, ShardList, fingerprint

    model = ContrastMatcher()
    np.save("query.npy", np.eye(9, 8, dtype="f4"))

    def made(name: str, spoil: Callable[[ShardList, Path], None]) -> None:
        build_index(name, model, [("v", np.eye(40, 8, dtype="f4"), 1.0)])
        listed = ShardList.load(Path(name), fingerprint(model))
        shard = Path(name, "shard-00000")
        spoil(listed, shard)
        write_manifest(shard, "shard")
        listed.shards[0] = replace(listed.shards[0], manifest=sha256_file(shard / "manifest.json"))
        listed.save(Path(name))

    def count(name: str, value: int) -> Callable[[ShardList, Path], None]:
        def spoil(listed: ShardList, shard: Path) -> None:
            record = json.loads((shard / "shard.json").read_text())
            record[name] = [value]
            (shard / "shard.json").write_text(json.dumps(record))

        return spoil

    def holes(listed: ShardList, shard: Path) -> None:
        count("steps", 1 << 24)(listed, shard)
        sparse(str(shard / "features.npy"), array((1 << 24, 8)), (1 << 29) + 128)

    def ids(listed: ShardList, shard: Path) -> None:
        names = [f"v{number}" for number in range(400_000)]
        listed.shards[0] = replace(listed.shards[0], ids=names)

    def shards(listed: ShardList, shard: Path) -> None:
        names = [f"shard-{number:05d}" for number in range(1, 100_000)]
        listed.shards += [ListedShard(name, "0" * 64, [name]) for name in names]

    made("sound", lambda listed, shard: None)
    made("steps", count("steps", 99_000_000))
    made("windows", count("proposals", 99_000_000))
    made("holes", holes)
    made("ids", ids)
    made("shards", shards)
    names = ("sound", "steps", "windows", "holes", "ids", "shards")
    return [(name, ["search", name, "query.npy"]) for name in names]


BOMBS = {
    "films": films,
    "pictures": pictures,
    "HDF5": hdf5,
    "arrays": arrays,
    "weights": weights,
    "JSON": json_files,
    "tables": tables,
    "XML": xml,
    "archives": archives,
    "indexes": indexes,
}

#: Runs commands one after the other; after each: MB over the most that the first one took, MB
#: written, seconds of the processor, exit code, what it said in its last words.
_RUN = """
import contextlib, io, json, signal, sys, time, warnings
from relocal_pyg.__main__ import _interrupt
from relocal_pyg.apps.cli import main
signal.signal(signal.SIGTERM, signal.SIG_IGN)
warnings.simplefilter("ignore")
def most():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
def written():
    return int(open("/proc/self/io").read().split("wchar:")[1].split()[0]) / 2**20
base = None
for line in sys.stdin:
    said, began, before = io.StringIO(), time.process_time(), written()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            signal.signal(signal.SIGTERM, _interrupt)
            code = main(json.loads(line))
        except BaseException as error:
            code = repr(error)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    base = most() if base is None else base
    told = [each for each in said.getvalue().replace("\\r", "\\n").splitlines() if each.strip()]
    took = most() - base, written() - before, time.process_time() - began
    print(json.dumps([*took, code, told[-3:]]), flush=True)
    open("/proc/self/clear_refs", "w").write("5")
"""


def run_bombs(quick: bool) -> Iterator[tuple[str, str | None]]:
    """What each bomb took, and what is wrong with that; of few kinds where it has to be quick."""
    for kind, make in list(BOMBS.items())[2:4] if quick else BOMBS.items():
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            commands = make()
            command = [sys.executable, "-c", _RUN]
            paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
            left = commands[1:]
            while left:
                with subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
                ) as child:
                    for name, words in [commands[0], *left]:
                        line, told, _ = answer(child, words)
                        if name == commands[0][0]:
                            assert json.loads(line)[3] in (0, 2), line
                            continue
                        left = left[1:]
                        ending = None
                        if line:  # and once more, told to end half way
                            *_, ending = answer(child, words, stop_after=json.loads(line)[2] / 2)
                        yield judged(f"{kind}: {name}", line, told, ending)
                        if not line:
                            break
                    child.kill()


def answer(
    child: subprocess.Popen[str], words: list[str], stop_after: float | None = None
) -> tuple[str, bool, float]:
    """What a process says of a command, whether it did in time, and the seconds of waiting."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(words) + "\n")
    child.stdin.flush()
    if stop_after is not None and not select.select([child.stdout], [], [], stop_after)[0]:
        child.send_signal(signal.SIGTERM)
    began = time.perf_counter()
    told = bool(select.select([child.stdout], [], [], 2 * MOST_SECONDS)[0])
    return child.stdout.readline() if told else "", told, time.perf_counter() - began


def judged(name: str, line: str, told: bool, ending: float | None = None) -> tuple[str, str | None]:
    """A row of figures, and what is wrong with them."""
    if not line:
        return name, "crashed" if told else f"no end in {2 * MOST_SECONDS} s"
    memory, written, seconds, code, said = json.loads(line)
    text = f"{name}: {max(memory, 0):.0f} MB, {written:.1f} MB written, {seconds:.1f} s, "
    text += "" if ending is None else f"ends in {ending:.2f} s, "
    text += said[-1] if code else "answered"
    faults = [
        *([f"{memory:.0f} MB"] if memory > MOST_MEMORY else []),
        *([f"{written:.0f} MB written"] if written > MOST_WRITTEN else []),
        *([f"ends in {ending:.1f} s"] if (ending or 0) > MOST_ENDING else []),
        *([f"{seconds:.0f} s"] if seconds > MOST_SECONDS else []),
        *([f"ended with {code}"] if code not in (0, 2) else []),
        *([f"{len(said)} lines"] if code == 2 and len(said) != 1 else []),
    ]
    return text, ", ".join(faults) or None


#: What is put in the place of a value somewhere in a JSON file.
_ODD = [None, -1, 0, 1e308, 10**30, "", "../x", "\ud800", [], {}, True, "v" * 300, 0.5, [[1]]]


def spoilt(value: Any, rng: np.random.Generator) -> Any:
    """A JSON value with something odd in one place."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = keys[int(rng.integers(len(keys)))]
        changed = value.copy()
        changed[key] = spoilt(value[key], rng)
        return changed
    return _ODD[int(rng.integers(len(_ODD)))]


def run_mutations(quick: bool) -> Iterator[tuple[str, str | None]]:
    """Spoil files of an index, sign them anew where they are signed, open it and search it.

    ``RELOCAL_SEED`` draws others.
    """
    count, seed = 450 if quick else 10_000, int(os.environ.get("RELOCAL_SEED", "11"))
    from relocal_pyg.errors import RelocalError
    from relocal_pyg.io.record import MANIFEST, manifest_text, sha256_file, write_manifest
    from relocal_pyg.models import ContrastMatcher
    from relocal_pyg.search import SearchIndex, build_index
    from relocal_pyg.search.storage import _digest
    from relocal_pyg.video.index import IndexedVideos

    sys.path.insert(0, str(ROOT / "tests" / "faults"))
    from mutations import mutate

    model, draw = ContrastMatcher(), np.random.default_rng(0)
    query = draw.standard_normal((6, 8)).astype("f4")
    whole = Path("index")
    videos = [(name, draw.standard_normal((40, 8)).astype("f4"), 0.5) for name in ("a", "b")]
    build_index(whole, model, videos)
    IndexedVideos(whole, 2.0, "blocks", {"a": Path("a.mp4"), "b": Path("b.mp4")}).save()
    shard, listed = whole / "shard-00000", whole / "index.json"
    sidecar = IndexedVideos.record_of(whole)
    files = [listed, shard / MANIFEST, shard / "shard.json", sidecar, *sorted(shard.glob("*.npy"))]
    sound = {file: file.read_bytes() for file in files}
    record = json.loads(sound[listed])

    def sign(file: Path, rng: np.random.Generator) -> None:
        told = {name: value for name, value in record.items() if name not in ("format", "sha256")}
        if file == listed and rng.random() < 0.8:
            told = spoilt(told, rng)
        elif file.parent == shard and file.name != MANIFEST:
            write_manifest(shard, "shard")
        elif file.name == MANIFEST and rng.random() < 0.5:
            held = spoilt(json.loads(sound[file])["files"], rng)
            file.write_text(manifest_text("shard", held))
        if file != sidecar and isinstance(told, dict):
            if file != listed:
                told["shards"] = [{**told["shards"][0], "manifest": sha256_file(shard / MANIFEST)}]
            signed = {"format": record["format"], "sha256": _digest(told), **told}
            listed.write_text(json.dumps(signed))

    def read(file: Path) -> None:
        made = IndexedVideos.load(whole)
        if not (0 < made.rate_hz <= 1000 and all(isinstance(name, str) for name in made.files)):
            raise AssertionError(f"lets {made} through")
        for hit in SearchIndex(whole, model).search(query, 5):
            if not (0 <= hit.start < hit.end < 1e12 and np.isfinite(hit.score)):
                raise AssertionError(f"answers {hit}")

    def late(*_: object) -> None:
        raise AssertionError(f"no end in {MOST_MUTATION} s")

    before = signal.signal(signal.SIGALRM, late)
    for file in files:
        refused, slowest, wrong = 0, 0.0, {}
        share = count // len(files) + (file == files[0]) * (count % len(files))
        for case in range(share):
            rng, text = np.random.default_rng([seed, case]), file.suffix == ".json"
            for name, data in sound.items():
                name.write_bytes(data)
            if text and rng.random() < 0.5:
                file.write_text(json.dumps(spoilt(json.loads(sound[file]), rng)))
            else:
                file.write_bytes(mutate(sound[file], rng, text))
            began = time.process_time()
            signal.alarm(MOST_MUTATION)
            try:
                sign(file, rng)
                with warnings.catch_warnings():
                    warnings.simplefilter("error")  # more lines than one
                    read(file)
            except RelocalError as error:
                refused += 1
                if "\n" in str(error):
                    wrong[f"{case}: {error}"[:200]] = case
            except Exception as error:
                wrong[f"{case}: {error!r}"[:200]] = case
            finally:
                signal.alarm(0)
            slowest = max(slowest, time.process_time() - began)
        text_ = f"{file.name}: {share} cases, {refused} refused in one line, {len(wrong)} wrong, "
        yield text_ + f"slowest {slowest:.2f} s", "; ".join(list(wrong)[:3]) or None
    signal.signal(signal.SIGALRM, before)


#: Goals that are measured here.
OWN: dict[str, Callable[[bool], Iterator[tuple[str, str | None]]]] = {
    "bombs": run_bombs,
    "mutations": run_mutations,
}
