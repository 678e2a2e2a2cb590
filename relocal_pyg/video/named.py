"""Backbones by name: of timm, transformers and open_clip, and those that other packages bring."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from relocal_pyg.errors import CheckpointError, RelocalError, UsageError
from relocal_pyg.io.read import read_json
from relocal_pyg.io.record import sha256_file
from relocal_pyg.video.backbones import Backbone, FunctionBackbone, in_torch

#: Entry points of packages that bring a backbone.
GROUP = "relocal_pyg.backbones"
#: Kinds of names whose weights come from a folder or from the hub: library, files of weights.
HUB = {
    "timm": ("timm", "model*.safetensors"),
    "hf": ("transformers", "model*.safetensors"),
    "openclip": ("open_clip", "open_clip*.safetensors"),
}
Pool = Literal["max", "mean"]


def load_named(name: str, pool: Pool | None = None, device: str = "cpu") -> Backbone:
    """Load the network that a name stands for.

    ``timm:NAME``, ``hf:REPO`` and ``openclip:ARCH/TAG`` are of the hub (``@REVISION`` may follow)
    or a folder in the place of all behind the colon. Size, colours and clip length are what the
    model's own configuration says; the whole picture is squeezed into the size. Weights are read
    from safetensors files alone and no code of a repository is run. ``py:package.module:object``
    and names of the entry points :data:`GROUP` stand for a backbone, or for what gives one when it
    is called with the keyword ``device``: that is somebody's code, which runs.

    Args:
        name: As above.
        pool: What is made of the maps or tokens of a picture; what the model makes of them itself
            where None.
        device: Where the network runs.

    Returns:
        A backbone whose name holds the revision, and the sha256 of weights and configuration.

    Raises:
        UsageError: Nothing goes by that name, a package is missing, or the hub did not answer.
        CheckpointError: The folder holds no model that can be used.
    """
    if pool not in (None, "max", "mean"):
        raise UsageError(f"pool is {pool!r}, 'max', 'mean' or None wanted")
    kind, _, place = name.partition(":")
    if kind in HUB:
        return _of_hub(kind, place, pool, device)
    if pool is not None:
        raise UsageError(f"--pool is for {', '.join(f'{each}:' for each in HUB)}, not for {name}")
    try:
        if kind == "py":
            module, _, path = place.partition(":")
            found: Any = import_module(module)
            for part in path.split("."):
                found = getattr(found, part)
        else:
            (entry,) = entry_points(group=GROUP, name=name)
            found = entry.load()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        known = sorted(each.name for each in entry_points(group=GROUP))
        also = f", installed: {', '.join(known)}" if known else ""
        why = f" ({first_line(error)})" if kind == "py" else ""
        raise UsageError(
            f"no backbone {name!r}{why}: efficientnet-lite0-max, efficientnet-lite0, c3d, "
            f"timm:NAME, hf:REPO, openclip:ARCH/TAG or py:package.module:object wanted{also}"
        ) from None
    try:
        if isinstance(found, type) or not isinstance(found, Backbone):
            found = found(device=device)
        if not isinstance(found, Backbone):
            raise TypeError(f"but {type(found).__name__}")
    except TypeError as error:
        raise UsageError(
            f"{name} gives no backbone ({first_line(error)}): name, dim, size, clip_frames, "
            "clip_stride and a call wanted"
        ) from error
    return found


def text_row(backbone: Backbone, words: str) -> Tensor:
    """What a text looks like to a backbone: a row ``[1, F]`` to compare pictures with.

    Raises:
        UsageError: The backbone knows no text, or cannot read it.
    """
    text = getattr(backbone, "text", None)
    if text is None:
        raise UsageError(
            f"{backbone.name} reads no text: take --backbone openclip:ARCH/TAG, or hf: with a CLIP "
            "or SigLIP model (and no --pool)"
        )
    try:
        row = cast(Tensor, text(words))
    except Exception as error:  # a tokenizer that is missing, and whatever else libraries meet
        raise UsageError(f"{backbone.name} reads no text ({first_line(error)})") from error
    if tuple(row.shape) != (1, backbone.dim):
        shape = f"{list(row.shape)} of words, [1, {backbone.dim}] wanted"
        raise UsageError(f"{backbone.name} gives {shape}")
    return row


def first_line(error: BaseException) -> str:
    """The first line of what a library says, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


class _Network(nn.Module):
    """From RGB uint8 pictures ``[B, H, W, 3]`` or clips ``[B, T, H, W, 3]`` to rows ``[B, F]``.

    ``features`` gives rows of normalised ``[B, 3, H, W]`` or ``[B, T, 3, H, W]``, ``text`` a row
    ``[1, F]`` of words; mean and standard deviation of the colours lie between 0 and 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        features: Callable[[Tensor], Tensor],
        size: tuple[int, int],
        mean: Any,
        std: Any,
        frames: int = 1,
        text: Callable[[str], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.features, self.size = model, features, size
        self.frames, self.text = frames, text
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1) * 255)
        self.eval().requires_grad_(False)

    def forward(self, frames: Tensor) -> Tensor:
        channels_first = frames.movedim(-1, -3).float()
        return self.features((channels_first - self.mean) / self.std)


def _of_hub(kind: str, place: str, pool: Pool | None, device: str) -> Backbone:
    library, weights = HUB[kind]
    folder, title = _folder(kind, place)
    files = sorted(folder.glob(weights))
    if not files:
        why = f"holds no {weights}: weights in other formats could run code and are not read"
        raise CheckpointError(why, file=folder)
    try:
        network = _LOADERS[kind](folder, pool)
        run = in_torch(network, device)
        length = [network.frames] if network.frames > 1 else []
        _, dim = run(torch.zeros(1, *length, *network.size, 3, dtype=torch.uint8)).shape
    except RelocalError:
        raise
    except Exception as error:  # these libraries raise whatever they meet
        why = f"cannot be loaded by {library} for pictures ({first_line(error)})"
        raise CheckpointError(why, file=folder) from None
    digest = hashlib.sha256()
    for file in [*files, *sorted(folder.glob("*.json"))]:
        digest.update(f"{file.name} {sha256_file(file)}\n".encode())
    return FunctionBackbone(
        run,
        f"{kind}-{title}-{pool or 'own'}-{digest.hexdigest()[:16]}",
        dim=dim,
        size=network.size,
        clip_frames=network.frames,
        # Half of each clip is seen twice: a step of a whole one is too long for a short query.
        clip_stride=max(network.frames // 2, 1),
        text=network.text,
    )


def _folder(kind: str, place: str) -> tuple[Path, str]:
    """The folder that holds a model, loaded from the hub where it is none itself, and its title."""
    library, weights = HUB[kind]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module(library)
            from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UsageError(
            f"{kind}: needs its package ({first_line(error)}): pip install 'relocal_pyg[{kind}]'"
        ) from None
    except Exception as error:  # torchvision is built for one torch and fails beside another
        raise UsageError(
            f"{kind}: {library} cannot be imported ({first_line(error)}): install torchvision for "
            f"torch {torch.__version__}"
        ) from None
    local = Path(place).expanduser()  # a shell leaves a ~ behind a colon as it is
    if place and local.is_dir():
        return local, re.sub(r"[^\w.]+", "-", local.resolve().name)
    if place.startswith(("/", ".", "~")):
        raise UsageError("is no folder", file=place)
    named, _, revision = place.partition("@")
    repository = _repository(kind, named)
    try:
        found = snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=["*.json", "*.txt", "*.model", weights],
            ignore_patterns=["*/*"],
        )
    except Exception as error:  # that of its web client, too
        raise UsageError(
            f"{kind}:{place} is not to be had from the hub ({first_line(error)}): check the name, "
            f"load it once where there is a network (hf download {repository}), or name a folder"
        ) from None
    return Path(found), re.sub(r"[^\w.]+", "-", f"{repository}-{Path(found).name[:12]}")


def _repository(kind: str, name: str) -> str:
    """The repository of the hub that holds a model; names with a slash may be one already."""
    known = ""
    if kind == "timm":
        import timm

        config = timm.get_pretrained_cfg(name.removeprefix("timm/"))
        known = "" if config is None else config.hf_hub_id or ""
    elif kind == "openclip":
        from open_clip.pretrained import get_pretrained_cfg

        architecture, _, tag = name.rpartition("/")
        known = get_pretrained_cfg(architecture.replace("/", "-"), tag).get("hf_hub", "")
    if not known and "/" not in name:
        raise UsageError(f"{kind} knows no weights {name!r} on the hub")
    return "/".join((known or name).split("/")[:2])


def _timm(folder: Path, pool: Pool | None) -> _Network:
    import timm

    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
    config = timm.data.resolve_model_data_config(model)

    def features(pixels: Tensor) -> Tensor:
        if pool is None:
            return cast(Tensor, model(pixels))
        maps = model.forward_features(pixels)
        if maps.ndim == 3:
            return _pooled(maps[:, getattr(model, "num_prefix_tokens", 0) :], pool)
        last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        return _pooled(maps.flatten(1, 2) if last else maps.flatten(2).mT, pool)

    return _Network(model, features, config["input_size"][1:], config["mean"], config["std"])


def _open_clip(folder: Path, pool: Pool | None) -> _Network:
    import open_clip

    if pool is not None:
        raise UsageError("open_clip pools as it was trained: leave --pool out")
    place = f"local-dir:{folder}"
    model = open_clip.create_model(place)
    config = open_clip.get_model_preprocess_cfg(model)

    def text(words: str) -> Tensor:
        tokens = open_clip.get_tokenizer(place)([words])
        with torch.no_grad():
            row: Tensor = model.encode_text(tokens.to(next(model.parameters()).device)).cpu()
        return row

    size = _size(config["size"])
    return _Network(model, model.encode_image, size, config["mean"], config["std"], text=text)


def _transformers(folder: Path, pool: Pool | None) -> _Network:
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    offline: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    loading = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
    loaded: Any = AutoModel.from_pretrained(folder, **offline, **loading)
    model, report = loaded
    # Many are published without the pooler, which is then drawn at random.
    lost = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if lost:
        raise CheckpointError(f"lacks {len(lost)} tensors, {lost[0]} first", file=folder)
    config = model.config
    frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None) or 1
    tower = getattr(model, "vision_model", model)
    two_towers = hasattr(model, "get_image_features") and hasattr(model, "get_text_features")

    def rows(found: Any) -> Tensor:
        return cast(Tensor, found if isinstance(found, Tensor) else found.pooler_output)

    def features(pixels: Tensor) -> Tensor:
        if pool is None and two_towers:
            return rows(model.get_image_features(pixel_values=pixels))
        if hasattr(model, "get_vision_features"):  # the predictor is left out
            return _pooled(model.get_vision_features(pixels), pool or "mean")
        found = tower(pixel_values=pixels)
        pooled = found.get("pooler_output")
        if pool is None and pooled is not None and not report["missing_keys"]:
            return pooled.flatten(1)
        tokens = found.last_hidden_state
        return _pooled(tokens if tokens.ndim == 3 else tokens.flatten(2).mT, pool or "mean")

    def text(words: str) -> Tensor:
        # Without its files some tokenizers are made with no words at all: all texts are alike.
        if not any(any(folder.glob(name)) for name in ("tokenizer.json", "vocab.*", "*.model")):
            raise ValueError("its folder holds no tokenizer")
        length = config.text_config.max_position_embeddings
        tokens = AutoTokenizer.from_pretrained(folder, **offline)(
            [words], padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        with torch.no_grad():
            return rows(model.get_text_features(**tokens.to(model.device))).cpu()

    reads = text if two_towers and pool is None else None
    return _Network(model, features, *_preparation(folder), frames, reads)


def _preparation(folder: Path) -> tuple[tuple[int, int], Any, Any]:
    """Size, mean and standard deviation that a model of transformers wants."""
    for name in ("preprocessor_config", "video_preprocessor_config", "processor_config"):
        file = folder / f"{name}.json"
        if not file.is_file():
            continue
        whole = read_json(file, CheckpointError)
        record = whole.get("image_processor") or whole.get("video_processor") or whole
        try:
            size = _size(record["crop_size" if record.get("do_center_crop") else "size"])
            # Most divide by 255 first; some want -1 to 1 before the mean is taken away.
            factor = record.get("rescale_factor", 1 / 255)
            range_ = 1 / (255 * (factor if record.get("do_rescale", True) else 1))
            shift = 1.0 if record.get("offset") else 0.0
            plain = not record.get("do_normalize", True)
            mean = [0.0] * 3 if plain else record["image_mean"]
            std = [1.0] * 3 if plain else record["image_std"]
            return size, [(m + shift) * range_ for m in mean], [s * range_ for s in std]
        except (KeyError, TypeError, AttributeError):
            raise CheckpointError("does not say size, mean and std", file=file) from None
    why = "holds no preprocessor_config.json, which says size, mean and std"
    raise CheckpointError(why, file=folder)


def _size(size: Any) -> tuple[int, int]:
    """Height and width, however a configuration says them."""
    if isinstance(size, dict):
        short = size.get("shortest_edge")
        return (size["height"], size["width"]) if short is None else (short, short)
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _pooled(tokens: Tensor, pool: Pool) -> Tensor:
    """Rows ``[B, F]`` of tokens ``[B, n, F]``."""
    return tokens.amax(dim=1) if pool == "max" else tokens.mean(dim=1)


_LOADERS: dict[str, Callable[[Path, Pool | None], _Network]] = {
    "timm": _timm,
    "hf": _transformers,
    "openclip": _open_clip,
}
