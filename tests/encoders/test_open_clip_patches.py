"""open_clip still calls what is replaced while it loads, and gets it back."""

import logging
import warnings

import pytest
import torch

from lightning_failures.encoders import OpenCLIPEncoder, open_clip_patches
from lightning_failures.encoders.frozen import load_tensors
from lightning_failures.encoders.open_clip_patches import cache_only, plain_tensors_only, quiet

factory = pytest.importorskip("open_clip.factory")
pretrained = pytest.importorskip("open_clip.pretrained")


def test_plain_tensors_only__open_clip_reads_through_ours(clip_folder, monkeypatch):
    read = []
    monkeypatch.setattr(open_clip_patches, "load_tensors", lambda path: (read.append(path), load_tensors(path))[1])
    before = factory.load_state_dict
    OpenCLIPEncoder(str(clip_folder))
    assert read == [clip_folder / "open_clip_model.safetensors"]
    assert factory.load_state_dict is before


def test_plain_tensors_only__prefix_of_data_parallel(tmp_path):
    torch.save({"state_dict": {"module.a": torch.ones(2), "module.b": torch.zeros(1)}}, tmp_path / "x.pt")
    with plain_tensors_only():
        assert set(factory.load_state_dict(str(tmp_path / "x.pt"), device="cpu", weights_only=True)) == {"a", "b"}


def test_cache_only__open_clip_downloads_through_ours(tmp_path):
    before = pretrained.hf_hub_download
    with cache_only(), pytest.raises(FileNotFoundError, match="is not in the cache"):
        pretrained.download_pretrained_from_hf("org/none", cache_dir=str(tmp_path))
    assert pretrained.hf_hub_download is before


@pytest.mark.parametrize("block", [plain_tensors_only, cache_only, quiet])
def test_blocks__undone_after_an_exception(block):
    def state():
        root = logging.getLogger()
        return factory.load_state_dict, pretrained.hf_hub_download, list(root.handlers), list(root.filters)

    def fail_inside():
        with block():
            assert state() != before
            raise KeyError

    before = state()
    with pytest.raises(KeyError):
        fail_inside()
    assert state() == before


def test_quiet__a_mismatch_is_an_error():
    with quiet(), pytest.raises(UserWarning, match="QuickGELU mismatch"):
        warnings.warn("QuickGELU mismatch between final model config", UserWarning, stacklevel=1)
