"""Principal components of features: the paper's 4,096 to 500 channels (section 5.2.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from relocal_pyg.errors import CheckpointError, FeatureError, UsageError, check_number
from relocal_pyg.io.tensors import read_tensors, save_tensors
from relocal_pyg.io.write import replace_file
from relocal_pyg.moments import to_tensor
from relocal_pyg.video.backbones import Backbone, FunctionBackbone


@dataclass(frozen=True)
class PCA:
    """A fitted projection, kept as three tensors.

    Attributes:
        mean: float32 ``[F]``.
        components: float32 ``[dim, F]``, orthonormal rows, the strongest first.
        explained_variance: float32 ``[dim]``, falling.
    """

    mean: Tensor
    components: Tensor
    explained_variance: Tensor

    def transform(self, features: ArrayLike) -> Tensor:
        """Project features: ``(x - mean) components^T``.

        Args:
            features: ``[n, F]``.

        Returns:
            float32 ``[n, dim]``.

        Raises:
            FeatureError: The array has another width.
        """
        rows = to_tensor(features, FeatureError).float()
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise FeatureError(f"shape {list(rows.shape)}, [n, {len(self.mean)}] wanted")
        return (rows - self.mean) @ self.components.T

    def after(self, backbone: Backbone) -> FunctionBackbone:
        """Give a backbone whose rows are those of another, projected.

        Raises:
            UsageError: The backbone has another width than the PCA.
        """
        if backbone.dim != len(self.mean):
            raise UsageError(
                f"the PCA is of {len(self.mean)} channels, {backbone.name} gives {backbone.dim}"
            )
        scaling = getattr(backbone, "interpolation", "AREA")
        # Features named without it were made from pictures scaled by AREA.
        digest = hashlib.sha256(b"" if scaling == "AREA" else scaling.encode())
        for tensor in (self.mean, self.components):
            digest.update(tensor.contiguous().numpy().tobytes())
        return FunctionBackbone(
            lambda frames: self.transform(backbone(frames).cpu()),
            name=f"{backbone.name}-pca-{digest.hexdigest()[:12]}",
            dim=len(self.components),
            size=backbone.size,
            clip_frames=backbone.clip_frames,
            clip_stride=backbone.clip_stride,
            interpolation=scaling,
        )

    def save(self, path: str | Path) -> None:
        """Write the tensors as safetensors; an interrupted write leaves the old file.

        Raises:
            OutputError: The file cannot be written.
        """
        with replace_file(path, "PCA") as temporary:
            save_tensors({name: each.contiguous() for name, each in vars(self).items()}, temporary)

    @classmethod
    def load(cls, path: str | Path) -> PCA:
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: Not such a file; the tensor that is missing or wrong is named.
        """
        tensors = read_tensors(Path(path), "is no stored PCA")
        for name, ndim in (("mean", 1), ("explained_variance", 1), ("components", 2)):
            if name not in tensors:
                raise CheckpointError("is missing", file=path, record=name)
            tensor, why = tensors[name], ""
            if tensor.ndim != ndim or not tensor.is_floating_point():
                why = f"has shape {list(tensor.shape)} and {tensor.dtype}"
            elif not tensor.isfinite().all():
                why = "holds values that are not finite"
            elif ndim == 2:
                wanted = [len(tensors["explained_variance"]), len(tensors["mean"])]
                if list(tensor.shape) != wanted:
                    why = f"has shape {list(tensor.shape)}, {wanted} wanted"
            if why:
                raise CheckpointError(why, file=path, record=name)
        return cls(*(tensors[name].float() for name in cls.__dataclass_fields__))


def fit_pca(arrays: Iterable[ArrayLike], dim: int = 500, batch_rows: int | None = None) -> PCA:
    """Fit principal components in one pass, a batch of rows in memory at a time.

    Fit on training videos only: components that have seen the test videos leak them. Uses
    scikit-learn's ``IncrementalPCA``: exact where everything fits one batch or the data has no more
    than ``dim`` directions, very near it otherwise.

    Args:
        arrays: Feature arrays ``[n, F]``, one a video; read once.
        dim: Components to keep.
        batch_rows: Rows per batch, at least ``dim``; four times ``dim`` where None.

    Raises:
        FeatureError: An array is not a finite ``[n, F]``, widths differ, or there are fewer rows
            or channels than ``dim``.
        UsageError: scikit-learn is not installed, or an argument is out of range.
    """
    try:
        from sklearn.decomposition import IncrementalPCA
    except ImportError:
        why = "fitting a PCA needs scikit-learn: pip install 'relocal_pyg[video]'"
        raise UsageError(why) from None
    check_number(dim, "dim", least=1, whole=True)
    batch_rows = 4 * dim if batch_rows is None else batch_rows
    check_number(batch_rows, "batch_rows", least=dim, whole=True)
    model = IncrementalPCA(n_components=dim)
    waiting: list[NDArray[np.float64]] = []
    rows = 0
    for number, array in enumerate(arrays):
        block = to_tensor(array, FeatureError, str(number)).detach().double().numpy()
        wanted = waiting[0].shape[1] if waiting else "F"
        if block.ndim != 2 or wanted not in ("F", block.shape[1]):
            why = f"shape {list(block.shape)}, [n, {wanted}] wanted"
            raise FeatureError(why, record=str(number))
        if not np.isfinite(block).all():
            raise FeatureError("holds values that are not finite", record=str(number))
        if block.shape[1] < dim:
            raise FeatureError(f"{dim} components of {block.shape[1]} channels asked for")
        waiting.append(block)
        rows += len(block)
        # A full batch always stays behind, so that the last one is never too small to fit.
        if rows >= 2 * batch_rows:
            stacked = np.concatenate(waiting)
            used = (len(stacked) // batch_rows - 1) * batch_rows
            for first in range(0, used, batch_rows):
                model.partial_fit(stacked[first : first + batch_rows])
            waiting = [stacked[used:]]
            rows = len(waiting[0])
    if rows < dim:
        raise FeatureError(f"{rows} rows are too few for {dim} components")
    model.partial_fit(np.concatenate(waiting))
    fitted = model.mean_, model.components_, model.explained_variance_
    return PCA(*(torch.from_numpy(each).float() for each in fitted))
