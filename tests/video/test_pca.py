from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from relocal_pyg.errors import CheckpointError, FeatureError, UsageError
from relocal_pyg.video.backbones import FunctionBackbone
from relocal_pyg.video.pca import PCA, fit_pca

decomposition = pytest.importorskip("sklearn.decomposition")


def separated(rows, channels, directions, seed=0, noise=0.0):
    """Rows whose variance along direction i is 4^-i, with a mean."""
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.normal(size=(channels, directions)))[0]
    scales = 2.0 ** -np.arange(directions)
    data = generator.normal(size=(rows, directions)) * scales @ basis.T
    return data + generator.normal(size=channels) + noise * generator.normal(size=data.shape)


def split(rows, seed=0):
    generator = np.random.default_rng(seed)
    return np.split(rows, np.sort(generator.integers(1, len(rows), 9)))


def same_up_to_sign(first, second, tolerance):
    signs = np.sign((first * second).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(first * signs, second, atol=tolerance)


@pytest.mark.parametrize("batch_rows", [None, 1000])
def test_equals_scikit_learn_on_data_that_fits(batch_rows):
    data = separated(600, 30, 6, noise=1e-4)
    fitted = fit_pca(split(data), dim=5, batch_rows=batch_rows)
    oracle = decomposition.PCA(n_components=5, svd_solver="full").fit(data)
    # One batch is exact; many batches lose only what lies outside the kept directions.
    tolerance = 1e-4 if batch_rows else 2e-2
    np.testing.assert_allclose(fitted.mean.numpy(), oracle.mean_, atol=1e-5)
    same_up_to_sign(fitted.components.numpy(), oracle.components_, tolerance)
    np.testing.assert_allclose(
        fitted.explained_variance.numpy(), oracle.explained_variance_, rtol=tolerance
    )
    expected = oracle.transform(data)
    same_up_to_sign(fitted.transform(data).numpy().T, expected.T, tolerance * 4)


def test_many_batches_are_exact_when_the_data_has_few_directions():
    data = separated(600, 30, 5)
    fitted = fit_pca(split(data), dim=5, batch_rows=20)
    oracle = decomposition.PCA(n_components=5, svd_solver="full").fit(data)
    same_up_to_sign(fitted.components.numpy(), oracle.components_, 1e-5)
    same_up_to_sign(fitted.transform(data).numpy().T, oracle.transform(data).T, 1e-4)


@pytest.mark.parametrize("rows", [7, 19, 20, 39, 40, 41, 200])
def test_every_row_counts_however_it_is_cut(rows):
    data = separated(rows, 12, 5)
    for arrays in ([data], list(data[:, None]), [data[:3], data[3:]]):
        fitted = fit_pca(iter(arrays), dim=5, batch_rows=20)
        np.testing.assert_allclose(fitted.mean.numpy(), data.mean(axis=0), atol=1e-5)
        total = fitted.explained_variance.sum().item()
        assert total == pytest.approx(data.var(axis=0, ddof=1).sum(), rel=1e-4)


def test_components_are_orthonormal_and_ordered():
    fitted = fit_pca([separated(300, 20, 20)], dim=8)
    gram = fitted.components @ fitted.components.T
    torch.testing.assert_close(gram, torch.eye(8), rtol=0, atol=1e-5)
    assert fitted.explained_variance.tolist() == sorted(
        fitted.explained_variance.tolist(), reverse=True
    )
    assert fitted.transform(torch.zeros(4, 20)).shape == (4, 8)
    assert fitted.transform(np.zeros((0, 20))).shape == (0, 8)


def test_stored_and_read_back(tmp_path):
    fitted = fit_pca([separated(100, 12, 6)], dim=4)
    fitted.save(tmp_path / "pca.safetensors")
    again = PCA.load(tmp_path / "pca.safetensors")
    for name in ("mean", "components", "explained_variance"):
        assert torch.equal(getattr(again, name), getattr(fitted, name))


@pytest.mark.parametrize(
    ("change", "record"),
    [
        ({"mean": None}, "mean"),
        ({"components": None}, "components"),
        ({"components": torch.ones(4, 9)}, "components"),
        ({"components": torch.ones(4)}, "components"),
        ({"explained_variance": torch.ones(3)}, "components"),
        ({"mean": torch.ones(12, dtype=torch.int64)}, "mean"),
        ({"mean": torch.full((12,), torch.nan)}, "mean"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, change, record):
    tensors = {
        "mean": torch.ones(12),
        "components": torch.ones(4, 12),
        "explained_variance": torch.ones(4),
        **change,
    }
    path = tmp_path / "pca.safetensors"
    save_file({k: v for k, v in tensors.items() if v is not None}, path)
    with pytest.raises(CheckpointError) as caught:
        PCA.load(path)
    assert (caught.value.file, caught.value.record) == (str(path), record)


def test_files_that_are_none(tmp_path):
    (tmp_path / "a").write_bytes(b"text")
    for name in ("a", "absent"):
        with pytest.raises(CheckpointError, match="no stored PCA"):
            PCA.load(tmp_path / name)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ([], "0 rows are too few"),
        ([np.ones((3, 12))], "3 rows are too few"),
        ([np.ones((9, 3))], "of 3 channels"),
        ([np.ones((9, 12)), np.ones((9, 11))], r"1: shape \[9, 11\], \[n, 12\] wanted"),
        ([np.ones(12)], r"\[n, F\] wanted"),
        ([np.full((9, 12), np.nan)], "not finite"),
        ([["a"]], "not an array of numbers"),
    ],
)
def test_bad_arrays(arrays, words):
    with pytest.raises(FeatureError, match=words):
        fit_pca(arrays, dim=4)


def test_a_backbone_before_a_pca_sees_the_same_pictures():
    """Scaled otherwise, they are not what the PCA was fitted to."""
    plain = FunctionBackbone(lambda frames: frames.float().mean((1, 2)), "mean", 3, (8, 8))
    sharp = replace(plain, interpolation="BICUBIC")
    fitted = PCA(torch.zeros(3), torch.eye(3)[:2], torch.ones(2))
    both = fitted.after(plain), fitted.after(sharp)
    assert [each.interpolation for each in both] == ["AREA", "BICUBIC"]
    assert both[0].name != both[1].name  # a cache finds features by it


def test_usage(monkeypatch):
    for options in ({"dim": 0}, {"dim": 2.5}, {"dim": 5, "batch_rows": 4}):
        with pytest.raises(UsageError, match="wanted"):
            fit_pca([np.ones((9, 12))], **options)
    rows = torch.from_numpy(separated(50, 12, 6)).bfloat16().requires_grad_()
    fitted = fit_pca([rows], dim=4)
    for wrong in (torch.ones(3, 11), torch.ones(12)):
        with pytest.raises(FeatureError, match="wanted"):
            fitted.transform(wrong)
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    with pytest.raises(UsageError, match=r"pip install 'relocal_pyg\[video\]'"):
        fit_pca([np.ones((9, 12))], dim=2)
