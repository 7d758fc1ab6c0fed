"""load_encoder: what a string names."""

import pytest
import torch
from safetensors.torch import save_file

from lightning_failures.encoders import Encoder, ModuleEncoder, RobustEncoder, TextEncoder, gives_maps, load_encoder
from lightning_failures.errors import EncoderError
from tests.encoders.tiny import resnet


def test_load_encoder__what_a_string_names(clip, clip_folder, tmp_path):
    loaded = load_encoder(f"local-dir:{clip_folder}")
    assert loaded.fingerprint == clip.fingerprint
    assert load_encoder(clip_folder).fingerprint == clip.fingerprint
    assert load_encoder(clip) is clip
    save_file(resnet().state_dict(), tmp_path / "x.safetensors")
    assert isinstance(load_encoder(str(tmp_path / "x.safetensors"), robust=True), RobustEncoder)


def test_load_encoder__embedded():
    clip, robust = load_encoder("embedded:digits"), load_encoder("embedded:digits", robust=True)
    assert isinstance(clip, TextEncoder)
    assert clip.name == robust.name == "embedded:digits"
    twins = [load_encoder(f"embedded:digits-{kind}", robust=True) for kind in ("plain", "untrained")]
    assert len({encoder.fingerprint for encoder in (clip, robust, *twins)}) == 4
    for encoder in (robust, *twins):
        assert gives_maps(encoder)
        assert encoder.encode_images(torch.rand(2, 3, 32, 32)).shape == (2, encoder.dim)


@pytest.mark.parametrize(
    ("spec", "robust", "message"),
    [
        ("embeded:digits", False, "Did you mean embedded:digits"),
        ("embedded:digit", False, "Did you mean embedded:digits"),
        ("embedded:digits-plane", True, "Did you mean embedded:digits-plain"),
        ("efficientnet-lite", False, "Did you mean efficientnet-lite0"),
        ("ViT-B-23/openai", False, "ViT-B-32/openai"),
        ("no/such/file.pt", True, "neither a file"),
        (3, False, "got int"),
    ],
)
def test_load_encoder__unknown(spec, robust, message):
    with pytest.raises(EncoderError, match=message):
        load_encoder(spec, robust=robust)


def test_load_encoder__a_module_needs_its_layer(net):
    with pytest.raises(EncoderError, match=r"ModuleEncoder\(module, layer\)"):
        load_encoder(net)
    assert isinstance(ModuleEncoder(net, "stem"), Encoder)
