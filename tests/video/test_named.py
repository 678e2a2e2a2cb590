"""Backbones by name: tiny models drawn from a seed, saved to a folder and loaded from it."""

from __future__ import annotations

import http.client
import importlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

pytest.importorskip("av")

from relocal_pyg.apps.cli import main
from relocal_pyg.apps.cli.options import BackboneOptions, load_network
from relocal_pyg.errors import CheckpointError, UsageError
from relocal_pyg.models import ContrastMatcher
from relocal_pyg.video import FunctionBackbone, StillQuery, find_moments, named
from relocal_pyg.video.named import load_named, text_row

SIZE, MEAN, STD = 32, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
#: What a saved model gives of normalised pictures ``[B, 3, 32, 32]`` or clips, told by the model.
Expected = Callable[[Tensor], Tensor]


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something that timm and open_clip can import where torchvision fails.

    torchvision is built for one torch each, and the package index has it for another one. Of its
    names these libraries use none for what is tested here.
    """
    try:
        importlib.import_module("torchvision")
        return
    except (ImportError, RuntimeError):
        pass

    class Names(ModuleType):
        __path__: list[str] = []

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return Kind(name, (torch.nn.Module,), {})

    class Kind(type):
        def __getattr__(cls, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return Kind(name, (torch.nn.Module,), {})

    parts = ["ops", "ops.misc", "transforms", "transforms.functional", "datasets", "utils"]
    parts += ["models", "models.feature_extraction"]
    for name in ["torchvision", *(f"torchvision.{part}" for part in parts)]:
        module = Names(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(scope="session")
def libraries() -> dict[str, Any]:
    """The libraries that are installed, by kind."""
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        stand_in(monkeypatch)
        for kind, (library, _) in named.HUB.items():
            try:
                found[kind] = importlib.import_module(library)
            except ImportError:
                continue
    return found


def save_timm(timm: Any, folder: Path) -> dict[str | None, Expected]:
    shape = {"img_size": SIZE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", **shape).eval()
    colours = {"mean": MEAN, "std": STD, "input_size": (3, SIZE, SIZE)}
    timm.models.save_for_hf(
        model, folder, model_args=shape, data_config=colours, safe_serialization=True
    )

    def patches(pixels: Tensor) -> Tensor:
        tokens: Tensor = model.forward_features(pixels)
        return tokens[:, 1:]  # the first is the class

    return {
        None: lambda pixels: model.forward_features(pixels)[:, 0],
        "max": lambda pixels: patches(pixels).amax(1),
        "mean": lambda pixels: patches(pixels).mean(1),
    }


def save_transformers(transformers: Any, folder: Path) -> dict[str | None, Expected]:
    """CLIP with a tokenizer of seven words."""
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<s>", "</s>", "<unk>", "a", "red", "blue", "square"]
    tokens = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")
    )
    tokens.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokens.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    marks = {"unk_token": "<unk>", "pad_token": "</s>", "eos_token": "</s>", "bos_token": "<s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokens, **marks).save_pretrained(folder)
    ends = {"eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1}
    config = transformers.CLIPConfig(
        text_config={**SMALL, **ends, "vocab_size": 7, "max_position_embeddings": 8},
        vision_config={**SMALL, "image_size": SIZE, "patch_size": 8},
        projection_dim=16,
    )
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(folder)
    prepare(folder)
    return {
        None: lambda pixels: model.visual_projection(model.vision_model(pixels).pooler_output),
        "max": lambda pixels: model.vision_model(pixels).last_hidden_state.amax(1),
    }


def save_open_clip(open_clip: Any, folder: Path) -> dict[str | None, Expected]:
    folder.mkdir()
    vision = {"image_size": SIZE, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    shape = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    model = open_clip.CLIP(**shape).eval()
    colours = {"mean": MEAN, "std": STD}
    config = {"model_cfg": shape, "preprocess_cfg": colours}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    tensors = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    return {None: lambda pixels: model.visual(pixels)}


def prepare(folder: Path, **more: Any) -> None:
    size = {"height": SIZE, "width": SIZE}
    record = {"image_mean": MEAN, "image_std": STD, "size": size} | more
    (folder / "preprocessor_config.json").write_text(json.dumps(record))


SAVE = {"timm": save_timm, "hf": save_transformers, "openclip": save_open_clip}


@pytest.fixture(scope="session")
def saved(
    libraries: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, dict[str | None, Expected]]]:
    """Saves a model of a kind, once, and says what it gives by each pooling."""
    made: dict[str, tuple[Path, dict[str | None, Expected]]] = {}

    def save(kind: str) -> tuple[Path, dict[str | None, Expected]]:
        if kind not in libraries:
            pytest.skip(f"{named.HUB[kind][0]} is not installed")
        if kind not in made:
            folder = tmp_path_factory.mktemp("models") / f"tiny {kind}"
            with torch.random.fork_rng():
                torch.manual_seed(0)
                made[kind] = folder, SAVE[kind](libraries[kind], folder)
        return made[kind]

    return save


@pytest.fixture
def pictures() -> Tensor:
    draws = np.random.default_rng(0)
    return torch.from_numpy(draws.integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8))


def normalised(frames: Tensor) -> Tensor:
    colours = (frames.double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return colours.movedim(-1, -3).float()


CASES = [("timm", None), ("timm", "max"), ("timm", "mean"), ("hf", None), ("hf", "max")]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "pool"), [*CASES, ("openclip", None)])
def test_features_are_those_of_the_model_that_was_saved(saved, pictures, kind, pool):
    folder, gives = saved(kind)
    backbone = load_named(f"{kind}:{folder}", pool)
    with torch.no_grad():
        expected = gives[pool](normalised(pictures))
    assert (backbone.size, backbone.clip_frames) == ((SIZE, SIZE), 1)
    assert backbone.dim == expected.shape[1]
    torch.testing.assert_close(backbone(pictures), expected, rtol=1e-4, atol=1e-5)


def test_video_models_take_clips(libraries, tmp_path):
    transformers = libraries.get("hf") or pytest.skip("transformers is not installed")
    config = transformers.VideoMAEConfig(image_size=SIZE, patch_size=8, num_frames=4, **SMALL)
    model = transformers.VideoMAEModel(config).eval()
    model.save_pretrained(tmp_path)
    prepare(tmp_path)
    backbone = load_named(f"hf:{tmp_path}")
    clips = torch.randint(0, 256, (3, 4, SIZE, SIZE, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = model(normalised(clips)).last_hidden_state.mean(1)
    assert (backbone.clip_frames, backbone.clip_stride) == (4, 2)
    torch.testing.assert_close(backbone(clips), expected, rtol=1e-4, atol=1e-5)


def test_pixels_that_are_not_scaled_first_are_not(libraries, tmp_path, pictures):
    transformers = libraries.get("hf") or pytest.skip("transformers is not installed")
    config = transformers.ViTConfig(image_size=SIZE, patch_size=8, **SMALL)
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    means = [255 * mean for mean in MEAN]
    prepare(tmp_path, do_rescale=False, image_mean=means, image_std=[255 * std for std in STD])
    with torch.no_grad():
        expected = model(normalised(pictures)).last_hidden_state.mean(1)
    given = load_named(f"hf:{tmp_path}")(pictures)
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


def test_a_home_folder_is_found_behind_the_colon(saved, monkeypatch):
    folder, _ = saved("hf")
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_named(f"hf:~/{folder.name}").name == load_named(f"hf:{folder}").name


@pytest.mark.slow
def test_the_name_follows_weights_and_configuration(saved, tmp_path):
    folder, _ = saved("hf")
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    names = [load_named(f"hf:{folder}").name, load_named(f"hf:{copy}").name]
    assert names[0] == names[1]
    assert names[0].startswith("hf-tiny-hf-own-")
    names.append(load_named(f"hf:{copy}", "max").name)
    record = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps(record | {"image_std": [1, 1, 1]}))
    names.append(load_named(f"hf:{copy}").name)
    tensors = load_file(copy / "model.safetensors")
    tensors["logit_scale"] += 1
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    names.append(load_named(f"hf:{copy}").name)
    assert len(set(names)) == 4


def test_a_pooler_without_weights_is_not_used(libraries, tmp_path, pictures):
    transformers = libraries.get("hf") or pytest.skip("transformers is not installed")
    config = transformers.ViTConfig(image_size=SIZE, patch_size=8, **SMALL)
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    prepare(tmp_path)
    with torch.no_grad():
        expected = model(normalised(pictures)).last_hidden_state.mean(1)
    for _ in range(2):  # one drawn at random would differ
        backbone = load_named(f"hf:{tmp_path}")
        torch.testing.assert_close(backbone(pictures), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_folders_that_cannot_be_used_are_refused(saved, tmp_path):
    folder, _ = saved("hf")

    def changed(name: str, change: Callable[[Path], object]) -> str:
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        change(copy)
        return f"hf:{copy}"

    def as_pickle(copy: Path) -> None:
        torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
        (copy / "model.safetensors").unlink()

    def lose(copy: Path) -> None:
        tensors = load_file(copy / "model.safetensors")
        del tensors["visual_projection.weight"]
        save_file(tensors, copy / "model.safetensors", {"format": "pt"})

    def bring_code(copy: Path) -> None:
        record = json.loads((copy / "config.json").read_text())
        record |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.C"}}
        (copy / "config.json").write_text(json.dumps(record))
        code = f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n"
        (copy / "theirs.py").write_text(code)

    def lose_preparation(copy: Path) -> None:
        (copy / "preprocessor_config.json").unlink()

    def resize(copy: Path) -> None:
        prepare(copy, size={"height": 40, "width": 40})

    for words, name in (
        ("weights in other formats could run code", changed("pickle", as_pickle)),
        ("lacks 1 tensors, visual_projection.weight", changed("lost", lose)),
        ("cannot be loaded by transformers", changed("code", bring_code)),
        ("preprocessor_config.json", changed("bare", lose_preparation)),
        (r"for pictures \(Input image size", changed("large", resize)),
    ):
        with pytest.raises(CheckpointError, match=words) as caught:
            load_named(name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_one_line(films, libraries, monkeypatch, capsys):
    if "hf" not in libraries:
        pytest.skip("transformers is not installed")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments = ["find", str(films["clip"]), str(films["folder"] / "film.mp4")]
    assert main([*arguments, "--backbone", "hf:nobody/nothing@v1"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("relocal: hf:nobody/nothing@v1 is not to be had from the hub")
    assert "hf download nobody/nothing" in said
    assert main([*arguments, "--backbone", "hf:./nowhere"]) == 2
    assert capsys.readouterr().err.endswith("./nowhere: is no folder\n")


def test_a_missing_package_says_what_to_install(monkeypatch):
    original = importlib.import_module

    def without(name: str) -> ModuleType:
        if name == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'")
        return original(name)

    monkeypatch.setattr(named, "import_module", without)
    with pytest.raises(UsageError, match=r"pip install 'relocal_pyg\[hf\]'"):
        load_named("hf:x/y")


class Levels(FunctionBackbone):
    """Somebody's own backbone."""

    def __init__(self, device: str) -> None:
        super().__init__(lambda frames: frames.float().mean((1, 2)), f"on-{device}", 3, (8, 8))


def test_code_of_others_is_named_by_module_or_entry_point(monkeypatch):
    module = ModuleType("their_backbones")
    module.Levels = Levels  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_backbones", module)
    assert load_named("py:their_backbones:Levels", device="cpu").name == "on-cpu"
    entry = EntryPoint("levels", "their_backbones:Levels", named.GROUP)
    monkeypatch.setattr(
        named, "entry_points", lambda group, name=None: [entry] if name in (None, "levels") else []
    )
    assert load_named("levels").name == "on-cpu"
    for name, words in (
        ("py:their_backbones:Nothing", "no attribute 'Nothing'"),
        ("py:not.there:x", "No module named 'not'"),
        ("py:os:sep", "gives no backbone"),
        ("py:os:getcwd", "gives no backbone .*no keyword arguments"),
        ("py:.x:y", "no backbone"),
        ("hf:", "knows no weights"),
        ("unheard", "installed: levels"),
    ):
        with pytest.raises(UsageError, match=words):
            load_named(name)
    with pytest.raises(UsageError, match="--pool is for"):
        load_named("levels", "max")
    with pytest.raises(UsageError, match="'max', 'mean' or None"):
        load_named("hf:.", "median")


def test_code_that_a_record_names_does_not_run(tmp_path):
    record = {"backbone": "py:their_backbones:Levels", "weights": None, "pca": None}
    features = {"backbone": "on-cpu", "rate_hz": 5, "network": record}
    (tmp_path / "run.json").write_text(json.dumps({"features": features}))
    with pytest.raises(CheckpointError, match="name it with --backbone to run its code"):
        load_network(BackboneOptions(), None, tmp_path, ContrastMatcher())


def texture(seed: int, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    picture = rng.integers(30, 225, size=(6, 8, 3)).repeat(8, 0).repeat(8, 1)
    noise = rng.normal(scale=6, size=(count, 48, 64, 3))
    return list(np.clip(picture + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def films(tmp_path_factory, write_video) -> dict[str, Path]:
    """A film with texture 7 from 4 to 7 s, a clip and a picture of that texture."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("films")
    (folder / "videos").mkdir()
    film = [*texture(1, 40), *texture(7, 30), *texture(2, 50)]
    write_video(folder / "videos" / "film.mp4", film, rate=10)
    write_video(folder / "videos" / "other.mp4", [*texture(3, 40), *texture(4, 40)], rate=10)
    image.fromarray(texture(7, 1)[0]).save(folder / "picture.png")
    return {
        "folder": folder / "videos",
        "clip": write_video(folder / "clip.mp4", texture(7, 30), rate=10),
        "picture": folder / "picture.png",
    }


def is_there(moment: dict[str, Any]) -> bool:
    """Whether an answer is about where texture 7 is: tIoU with 4 to 7 s above .5."""
    common = min(moment["end"], 7) - max(moment["start"], 4)
    return common > 0.5 * (max(moment["end"], 7) - min(moment["start"], 4))


def meets(moment: dict[str, Any]) -> bool:
    return bool(moment["start"] < 7 and moment["end"] > 4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", named.HUB)
def test_find_index_and_search(saved, films, tmp_path, kind):
    network = ["--backbone", f"{kind}:{saved(kind)[0]}"]
    film, answers = str(films["folder"] / "film.mp4"), str(tmp_path / "answers.json")

    def best(*arguments: str) -> dict[str, Any]:
        assert main([*arguments, "--json", answers, "--force"]) == 0
        return dict(json.loads(Path(answers).read_text())["moments"][0])

    assert is_there(best("find", str(films["clip"]), film, *network, "--device", "cpu"))
    picture = best("find", film, "--query-image", str(films["picture"]), *network)
    assert meets(picture)
    assert "probability" not in picture
    index = str(tmp_path / "index")
    assert main(["index", index, str(films["folder"]), *network, "--rate", "5"]) == 0
    # The index knows its network.
    for query in ([str(films["clip"])], ["--query-image", str(films["picture"])]):
        hit = best("search", index, *query)
        assert hit["video"] == "film"
        assert meets(hit)
    assert main(["search", index, str(films["clip"]), *network, "--pool", "max"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hf", "openclip"])
def test_words_are_looked_for(saved, films, tmp_path, kind, capsys):
    folder, _ = saved(kind)
    backbone = load_named(f"{kind}:{folder}")
    film = films["folder"] / "film.mp4"
    row = text_row(backbone, "a red square")
    assert row.shape == (1, backbone.dim)
    assert not torch.allclose(row, text_row(backbone, "a blue square"))
    network = ["--backbone", f"{kind}:{folder}"]
    page = tmp_path / "page.html"
    arguments = ["find", str(film), "--query-text", "a red square", *network]
    assert main([*arguments, "--report", str(page)]) == 0
    assert 'query: "a red square"' in capsys.readouterr().out
    assert "&quot;a red square&quot;" in page.read_text() or "&#34;a red" in page.read_text()
    assert main([*arguments, "--pool", "max"]) == 2
    words = {"hf": "reads no text", "openclip": "leave --pool out"}[kind]
    assert words in capsys.readouterr().err


def test_words_that_cannot_be_read_are_one_line(saved, tmp_path):
    folder, _ = saved("hf")
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*token*"))
    with pytest.raises(UsageError, match="reads no text") as caught:
        text_row(load_named(f"hf:{copy}"), "a red square")
    assert "\n" not in str(caught.value)
    narrow = FunctionBackbone(len, "narrow", 3, (8, 8), text=lambda words: torch.zeros(1, 2))
    with pytest.raises(UsageError, match=r"\[1, 2\] of words, \[1, 3\] wanted"):
        text_row(narrow, "a")


@pytest.mark.slow
def test_words_find_what_they_stand_for(films):
    def blocks(frames: Tensor) -> Tensor:
        return frames.float().reshape(len(frames), 6, 8, 8, 8, 3).mean((2, 4)).flatten(1)

    def text(words: str) -> Tensor:
        return blocks(torch.from_numpy(texture(int(words.split()[-1]), 1)[0])[None])

    backbone = FunctionBackbone(blocks, "reads", 144, (48, 64), text=text)
    found = find_moments(StillQuery("texture 7"), films["folder"] / "film.mp4", backbone=backbone)
    assert is_there(vars(found.moments[0]))
    assert found.moments[0].probability is None
    assert found.query.title == '"texture 7"'


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_here_is_one_line(films, device, capsys):
    if getattr(torch, device).is_available():
        pytest.skip(f"{device} is here")
    film = str(films["folder"] / "film.mp4")
    assert main(["find", str(films["clip"]), film, "--device", device]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [f"relocal: there is no {device} device here: leave --device out"]


@pytest.mark.slow
def test_words_need_a_place_and_a_network_that_reads(films, capsys):
    film, clip = str(films["folder"] / "film.mp4"), str(films["clip"])
    for arguments, words in (
        (["find", film], "REFERENCE is missing"),
        (["find", clip, film, "--query-text", "a"], "in the place of QUERY"),
        (["find", film, "--query-text", "a", "--query-end", "2"], "in the place of QUERY"),
        (["find", film, "--query-text", "a"], "reads no text"),
        (["find", film, "--query-text", "a", "--query-image", clip], "words or a picture"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err


#: Training sees features alone: every day one kind. Networks of each are searched with above.
TRAINED = list(named.HUB) if os.environ.get("RELOCAL_FAULTS") == "full" else ["hf"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRAINED)
def test_train_on_videos(saved, small_presets, write_video, tmp_path, kind):
    videos, lines = tmp_path / "videos", ["video,start,end,label"]
    videos.mkdir()
    for number in range(6):
        name = f"film{number}"
        parts = [texture(20 + number, 20), texture(1, 20), texture(40 + number, 10), texture(2, 20)]
        write_video(videos / f"{name}.mp4", [each for part in parts for each in part], rate=10)
        lines += [f"{name},2,4,first", f"{name},5,7,second"]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    run = tmp_path / "run"
    arguments = ["train", str(run), "--videos", str(videos), "--steps", "2", "--rate", "5"]
    arguments += ["--annotations", str(tmp_path / "labels.csv"), "--device", "cpu"]
    folder, _ = saved(kind)
    assert main([*arguments, "--backbone", f"{kind}:{folder}"]) == 0
    record = json.loads((run / "run.json").read_text())["features"]
    assert record["network"]["backbone"] == f"{kind}:{folder}"
    assert record["backbone"] == load_named(f"{kind}:{folder}").name
    # The run knows its network.
    film = str(videos / "film0.mp4")
    query = ["--query-start", "2", "--query-end", "4"]
    assert main(["find", film, str(videos / "film1.mp4"), "--model", str(run), *query]) == 0


@pytest.fixture
def serving(monkeypatch) -> Callable[[list[str], Callable[[int], object]], None]:
    """Runs ``relocal serve`` while a function asks it, given the port."""
    pytest.importorskip("starlette")
    uvicorn = pytest.importorskip("uvicorn")
    original, failed = uvicorn.Server.run, []

    def serve(arguments: list[str], ask: Callable[[int], object]) -> None:
        def run(server: Any, sockets: list[Any]) -> None:
            def visit() -> None:
                try:
                    ask(sockets[0].getsockname()[1])
                except BaseException as error:
                    failed.append(error)
                server.should_exit = True

            visitor = threading.Thread(target=visit)
            visitor.start()
            original(server, sockets=sockets)
            visitor.join()

        monkeypatch.setattr(uvicorn.Server, "run", run)
        assert main(["serve", *arguments]) == 0
        assert not failed, failed

    return serve


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", named.HUB)
def test_serve(saved, films, serving, kind):
    def ask(port: int) -> None:
        def answer(method: str, path: str, body: Any = None) -> Any:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, json.dumps(body), headers)
            return json.loads(connection.getresponse().read())

        keys = {video["name"]: video["id"] for video in answer("GET", "/api/videos")}
        film = keys["film.mp4"]
        wanted = {"query": film, "reference": film, "query_start": 4, "query_end": 7}
        job = answer("POST", "/api/searches", wanted)
        while (now := answer("GET", f"/api/searches/{job['id']}"))["state"] in (
            "waiting",
            "running",
        ):
            pass
        assert now["state"] == "done", now
        assert now["settings"]["backbone"].startswith(f"{kind}-tiny")

    folder, _ = saved(kind)
    port = str(free_port())
    serving([str(films["folder"]), "--port", port, "--backbone", f"{kind}:{folder}"], ask)
