"""ModuleEncoder, on a user's classifier."""

import threading

import pytest
import torch
from torch import nn

from lightning_failures.encoders import ModuleEncoder, OpenCLIPEncoder, gives_gradients, gives_maps, gives_texts
from lightning_failures.errors import DataError, EncoderError
from tests.encoders.tiny import Net, as_batch, rng_states, seeded, smooth_image


def modes(module):
    return [m.training for m in module.modules()]


def hooks(module):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()]


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


@pytest.mark.parametrize("copy", [True, False])
def test_module_encoder__leaves_the_module_alone(net, images, copy):
    before = modes(net), hooks(net), state(net), [p.requires_grad for p in net.parameters()], rng_states()
    encoder = ModuleEncoder(net, "stem", copy=copy)
    features, maps = encoder.encode_images(images), encoder.encode_maps(images)
    assert not features.requires_grad
    assert not maps.requires_grad
    after = modes(net), hooks(net), state(net), [p.requires_grad for p in net.parameters()], rng_states()
    assert after[2].keys() == before[2].keys()
    assert all(torch.equal(after[2][k], before[2][k]) for k in before[2])
    assert (after[:2], after[3:]) == (before[:2], before[3:])
    net.eval()
    with torch.no_grad():
        expected = net.stem(images)
    torch.testing.assert_close(maps, expected)
    torch.testing.assert_close(features, expected.mean((2, 3)))
    assert gives_maps(encoder)
    assert not gives_texts(encoder)


def test_module_encoder__after_an_exception(net, images):
    encoder = ModuleEncoder(net, "stem", copy=False)
    before = modes(net), hooks(net)
    net.fail = True
    with pytest.raises(ValueError, match="out of order"):
        encoder.encode_images(images)
    assert (modes(net), hooks(net)) == before


def test_module_encoder__copy_is_a_snapshot(net, images):
    frozen, live = ModuleEncoder(net, "stem"), ModuleEncoder(net, "stem", copy=False)
    embedding, fingerprint = frozen.encode_images(images), frozen.fingerprint
    assert live.fingerprint == fingerprint
    with torch.no_grad():
        net.stem[0].weight += 1
    assert torch.equal(frozen.encode_images(images), embedding)
    assert frozen.fingerprint == fingerprint
    assert not torch.allclose(live.encode_images(images), embedding)
    assert live.fingerprint != fingerprint


def test_module_encoder__fingerprint(net):
    same = [ModuleEncoder(net, "stem").fingerprint for _ in range(2)]
    assert same[0] == same[1]
    others = [
        ModuleEncoder(net, "stem.0"),
        ModuleEncoder(net, "stem", mean=[0.5] * 3),
        ModuleEncoder(net, "stem", image_size=16),
        ModuleEncoder(seeded(Net, 1), "stem"),
    ]
    assert len({same[0], *(encoder.fingerprint for encoder in others)}) == 5


def test_module_encoder__normalises(net, images):
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    encoder = ModuleEncoder(net, "stem", mean=mean, std=std)
    by_hand = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode_maps(images), net.eval().stem(by_hand))
    with pytest.raises(EncoderError, match="mean must have one value for each of the 3"):
        ModuleEncoder(net, "stem", mean=[0.1, 0.2])


def test_module_encoder__vectors_have_no_maps(net, images):
    encoder = ModuleEncoder(net, "drop")
    assert encoder.encode_images(images).shape == (5, 8)
    assert not gives_maps(encoder)
    with pytest.raises(EncoderError, match="vectors, not maps"):
        encoder.encode_maps(images)


def test_module_encoder__autocast_and_inference_mode(net, images):
    encoder = ModuleEncoder(net, "stem")
    expected = encoder.encode_images(images)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        got = ModuleEncoder(net, "stem").encode_images(images)
    assert torch.equal(got, expected)
    assert not got.is_inference()


def test_module_encoder__half_precision_module_is_copied_to_full(net, images):
    expected = ModuleEncoder(net, "stem").encode_images(images)
    low = ModuleEncoder(net.to(torch.bfloat16), "stem").encode_images(images)
    assert low.dtype == torch.float32
    assert not torch.equal(low, expected)
    in_place = ModuleEncoder(net, "stem", copy=False)
    torch.testing.assert_close(in_place.encode_images(images), low, atol=0.05, rtol=0.05)


def test_module_encoder__one_channel():
    encoder = ModuleEncoder(seeded(lambda: Net(channels=1)), "stem", mean=[0.1], std=[0.3])
    assert encoder.encode_images(torch.rand(2, 1, 28, 28)).shape == (2, 8)
    with pytest.raises(DataError, match="1 channel"):
        encoder.encode_images(torch.rand(2, 3, 28, 28))


def test_module_encoder__fixed_size():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 20, 7))
    with pytest.raises(EncoderError, match="image_size"):
        ModuleEncoder(flat, "1")
    assert ModuleEncoder(flat, "1", image_size=20).encode_images(torch.rand(2, 3, 40, 30)).shape == (2, 7)


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent = nn.GRU(3, 4, batch_first=True)
        self.tokens = nn.Identity()
        self.silent = nn.Identity()

    def forward(self, x):
        return self.recurrent(self.tokens(x.flatten(2).transpose(1, 2)))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("steem", "Did you mean stem"),
        ("", "not a submodule"),
        ("unused", "is not reached"),
    ],
)
def test_module_encoder__wrong_layer(net, layer, message):
    with pytest.raises(EncoderError, match=message):
        ModuleEncoder(net, layer)


@pytest.mark.parametrize(
    ("layer", "message"), [("recurrent", "a tuple"), ("tokens", r"\(1, 4096, 3\)"), ("silent", "is not reached")]
)
def test_module_encoder__wrong_output(layer, message):
    with pytest.raises(EncoderError, match=message):
        ModuleEncoder(Odd(), layer)


def test_module_encoder__cannot_be_copied(net):
    net.lock = threading.Lock()
    with pytest.raises(EncoderError, match="copy=False"):
        ModuleEncoder(net, "stem")
    assert ModuleEncoder(net, "stem", copy=False).dim == 8
    with pytest.raises(EncoderError, match="device=None"):
        ModuleEncoder(net, "stem", copy=False, device="cpu")


def test_module_encoder__timm_and_torchvision(images):
    import timm
    import torchvision

    built = seeded(lambda: timm.create_model("resnet10t", pretrained=False, num_classes=5).eval())
    with torch.no_grad():
        expected = built.forward_head(built.forward_features(images), pre_logits=True)
    torch.testing.assert_close(ModuleEncoder(built, "layer4").encode_images(images), expected, atol=1e-5, rtol=1e-5)
    resnet = torchvision.models.get_model("resnet18", weights=None)
    assert ModuleEncoder(resnet, "layer4", image_size=64).encode_maps(images).shape == (5, 512, 2, 2)


def test_module_encoder__view_is_what_the_model_sees(net):
    encoder = ModuleEncoder(net, "stem", mean=[0.5] * 3, std=[0.5] * 3, image_size=16, crop=0.8)
    view = encoder.view(as_batch(smooth_image(40, 60)))
    assert view.shape == (1, 3, 16, 16)
    plain = ModuleEncoder(net, "stem", mean=[0.5] * 3, std=[0.5] * 3)
    torch.testing.assert_close(plain.encode_maps(view), encoder.encode_maps(as_batch(smooth_image(40, 60))))


@pytest.mark.parametrize("door", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("copy", [True, False])
def test_differentiable__features_with_gradients_and_no_trace(net, images, copy, door):
    encoder = ModuleEncoder(net, "stem", copy=copy, mean=[0.4] * 3, std=[0.2] * 3)
    before = modes(net), hooks(net), [p.requires_grad for p in net.parameters()], rng_states()
    with door(), encoder.differentiable() as features:
        seen = encoder.view(images).requires_grad_()
        values = features(seen)
        (gradient,) = torch.autograd.grad(values[:, 1].sum(), seen)
    after = modes(net), hooks(net), [p.requires_grad for p in net.parameters()], rng_states()
    assert after == before
    assert all(p.grad is None for p in net.parameters())
    torch.testing.assert_close(values.detach(), encoder.encode_images(images))
    # against finite differences, in double precision
    twin = net.double().eval().stem
    nudge = torch.zeros(1, 3, *images.shape[2:], dtype=torch.float64)
    nudge[0, 2, 3, 4] = 1e-5

    def strength(x):
        return twin((x.double() - 0.4) / 0.2).mean((2, 3))[:, 1]

    with torch.no_grad():
        slope = (strength(images + nudge) - strength(images - nudge)) / 2e-5
    torch.testing.assert_close(gradient[:, 2, 3, 4].double(), slope, rtol=1e-3, atol=1e-7)


def test_differentiable__after_an_exception(net, images):
    encoder = ModuleEncoder(net, "stem", copy=False)
    before = modes(net), hooks(net)
    net.fail = True
    with encoder.differentiable() as features, pytest.raises(ValueError, match="out of order"):
        features(images)
    assert (modes(net), hooks(net)) == before


def test_gives_gradients__where_there_is_a_way_in(net):
    assert gives_gradients(ModuleEncoder(net, "stem"))
    assert not gives_gradients(object.__new__(OpenCLIPEncoder))
