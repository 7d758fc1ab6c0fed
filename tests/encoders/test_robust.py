"""RobustEncoder, on small checkpoints in the layouts that are found in the wild."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from lightning_failures.encoders import FeatureEncoder, Preprocessing, RobustEncoder
from lightning_failures.errors import EncoderError
from tests.encoders.tiny import Exploit, Net, resnet, rng_states, seeded

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


def madry(net, *, parallel=True):
    """The layout of the robustness library: the network twice, a normaliser, optimiser state and bookkeeping."""
    start = "module." if parallel else ""
    tensors = {
        f"{start}{part}new_{k}": torch.tensor(v).view(3, 1, 1)
        for part in ("normalizer.", "attacker.normalize.")
        for k, v in (("mean", MEAN), ("std", STD))
    }
    for part in ("model.", "attacker.model."):
        tensors |= {f"{start}{part}{k}": v for k, v in net.state_dict().items()}
    return {
        "model": tensors,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "epoch": 90,
        "nat_prec1": torch.tensor(0.6),
    }


def by_hand(net, images, size, mean=MEAN, std=STD):
    x = Preprocessing(size=(size, size), mean=tuple(mean), std=tuple(std), interpolation="bilinear")(images)
    with torch.no_grad():
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        return net.layer4(net.layer3(net.layer2(net.layer1(x))))


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("parallel", [True, False])
def test_robust__madry_layout(tmp_path, images, block, parallel):
    net = resnet(block)
    torch.save(madry(net, parallel=parallel), tmp_path / "robust.pt")
    before = rng_states()
    encoder = RobustEncoder(tmp_path / "robust.pt", image_size=64)
    assert rng_states() == before
    expected = by_hand(net, images, 64)
    torch.testing.assert_close(encoder.encode_maps(images), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.encode_images(images), expected.mean((2, 3)), atol=1e-5, rtol=1e-4)
    assert encoder.preprocessing.mean == pytest.approx(MEAN)
    assert encoder.name == "robust.pt"
    assert encoder.arch == f"ResNet({block.__name__}, [1, 1, 1, 1])"
    assert isinstance(encoder, FeatureEncoder)
    assert RobustEncoder(tmp_path / "robust.pt", image_size=64).fingerprint == encoder.fingerprint


@pytest.mark.parametrize("layout", ["torchvision", "state_dict", "safetensors", "prefix", "headless"])
def test_robust__other_layouts(tmp_path, images, layout):
    net = resnet()
    tensors = net.state_dict()
    path = tmp_path / ("robust.safetensors" if layout == "safetensors" else "robust.pth")
    if layout == "safetensors":
        save_file(tensors, path)
    elif layout == "headless":
        torch.save({k: v for k, v in tensors.items() if not k.startswith("fc.")}, path)
    else:
        prefix = "backbone.net." if layout == "prefix" else ""
        renamed = {prefix + k: v for k, v in tensors.items()}
        torch.save({"state_dict": renamed} if layout == "state_dict" else renamed, path)
    encoder = RobustEncoder(path, image_size=64)
    expected = by_hand(net, images, 64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(encoder.encode_maps(images), expected, atol=1e-5, rtol=1e-4)


def test_robust__cifar_variant(tmp_path, images):
    net = resnet()
    net.conv1 = seeded(lambda: nn.Conv2d(3, 64, 3, padding=1, bias=False))
    net.maxpool = nn.Identity()
    checkpoint = madry(net)
    checkpoint["model"] = {
        k.replace("downsample", "shortcut").replace(".fc.", ".linear."): v for k, v in checkpoint["model"].items()
    }
    torch.save(checkpoint, tmp_path / "cifar.pt")
    encoder = RobustEncoder(tmp_path / "cifar.pt")
    torch.testing.assert_close(encoder.encode_maps(images), by_hand(net, images, 32), atol=1e-5, rtol=1e-4)
    assert "3x3 stem" in encoder.arch
    del checkpoint["model"]["module.normalizer.new_mean"], checkpoint["model"]["module.attacker.normalize.new_mean"]
    torch.save(checkpoint, tmp_path / "cifar.pt")
    with pytest.raises(EncoderError, match="mean= and std="):
        RobustEncoder(tmp_path / "cifar.pt")
    given = RobustEncoder(tmp_path / "cifar.pt", mean=MEAN, std=STD)
    torch.testing.assert_close(given.encode_images(images), encoder.encode_images(images))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d"])
def test_robust__shape_read_off_the_tensors(name):
    from torchvision.models import get_model

    from lightning_failures.encoders import robust

    with torch.device("meta"):
        net = get_model(name, weights=None)
    shape = robust._infer_shape(net.state_dict(), Path("x"))
    block = Bottleneck if shape.bottleneck else BasicBlock
    with torch.device("meta"):
        rebuilt = ResNet(
            block,
            list(shape.layers),
            num_classes=shape.classes,
            groups=shape.groups,
            width_per_group=shape.width_per_group,
        )
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}


def test_robust__arch_given(tmp_path):
    torch.save(madry(resnet(layers=(2, 2, 2, 2))), tmp_path / "x.pt")
    assert RobustEncoder(tmp_path / "x.pt", "resnet18", image_size=32).dim == 512
    with pytest.raises(EncoderError, match="do not fit resnet34"):
        RobustEncoder(tmp_path / "x.pt", "resnet34")
    with pytest.raises(EncoderError, match="Did you mean resnet50"):
        RobustEncoder(tmp_path / "x.pt", "resnet-50")


def test_robust__code_is_refused(tmp_path):
    torch.save({"model": {"conv1.weight": Exploit(tmp_path / "ran")}}, tmp_path / "x.pt")
    with pytest.raises(EncoderError, match="save its tensors: "):
        RobustEncoder(tmp_path / "x.pt")
    (tmp_path / "legacy.pt").write_bytes(pickle.dumps({"model": Exploit(tmp_path / "ran")}))
    with pytest.raises(EncoderError, match="save its tensors: "):
        RobustEncoder(tmp_path / "legacy.pt")
    torch.save(resnet(), tmp_path / "module.pt")
    with pytest.raises(EncoderError, match=r"safetensors\.torch\.save_file"):
        RobustEncoder(tmp_path / "module.pt")
    assert not (tmp_path / "ran").exists()


def test_robust__damaged_files(tmp_path):
    save_file(resnet().state_dict(), tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EncoderError, match="cannot be read"):
        RobustEncoder(tmp_path / "x.safetensors")
    with pytest.raises(EncoderError, match="is not a file"):
        RobustEncoder(tmp_path / "nothing.pt")
    torch.save({"epoch": 3}, tmp_path / "y.pt")
    with pytest.raises(EncoderError, match="no state dict"):
        RobustEncoder(tmp_path / "y.pt")
    torch.save(Net().state_dict(), tmp_path / "z.pt")
    with pytest.raises(EncoderError, match="is not a ResNet"):
        RobustEncoder(tmp_path / "z.pt")


@pytest.mark.parametrize("damage", ["nan", "zero", "missing"])
def test_robust__self_test(tmp_path, damage):
    tensors = resnet().state_dict()
    if damage == "nan":
        tensors["layer3.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    elif damage == "zero":
        tensors = {k: torch.zeros_like(v) for k, v in tensors.items()}
    else:
        del tensors["layer3.0.bn2.running_var"]
    torch.save(tensors, tmp_path / "x.pt")
    message = {"nan": "not finite", "zero": "equal features", "missing": r"do not fit .*layer3.0.bn2.running_var"}[
        damage
    ]
    with pytest.raises(EncoderError, match=message):
        RobustEncoder(tmp_path / "x.pt", image_size=32)
