"""What keeps a frozen model apart from the training around it."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lightning_failures.encoders.frozen import (
    as_device,
    fingerprint,
    first_line,
    freeze,
    frozen_inference,
    in_chunks,
    isolated_build,
    load_tensors,
    open_to_gradients,
    state_dict_of,
)
from lightning_failures.errors import EncoderError

CPU = torch.device("cpu")


def test_frozen_inference__ordinary_tensors_without_gradients():
    weight = torch.ones(2, 2, requires_grad=True)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), frozen_inference(CPU):
        product = weight @ weight
    assert product.dtype == torch.float32
    assert not product.requires_grad
    assert not product.is_inference()


def test_open_to_gradients__inside_inference_mode():
    with torch.inference_mode(), open_to_gradients(CPU):
        x = torch.ones(2, requires_grad=True)
        (gradient,) = torch.autograd.grad((x**2).sum(), x)
    assert gradient.tolist() == [2, 2]


def test_isolated_build__leaves_the_generator_unchanged():
    before = torch.get_rng_state()
    with torch.inference_mode(), isolated_build():
        layer = nn.Linear(3, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert not layer.weight.is_inference()


def test_freeze__float32_eval_and_no_gradients():
    model = freeze(nn.Sequential(nn.Linear(2, 2), nn.Dropout()).half(), CPU)
    assert not model.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in model.parameters())


def test_as_device__missing():
    assert as_device("cpu") == CPU
    with pytest.raises(EncoderError, match="device='cuda:99' cannot be used here"):
        as_device("cuda:99")


def test_in_chunks__empty_and_uneven():
    assert in_chunks(lambda rows: rows[:, :1], torch.ones(0, 3), 2).shape == (0, 1)
    assert in_chunks(lambda rows: rows.double(), torch.arange(7), 3).tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_fingerprint__weights_names_and_description():
    model = nn.Linear(2, 1)
    other = nn.Linear(2, 1)
    other.load_state_dict(model.state_dict())
    assert fingerprint(model, size=8) == fingerprint(other, size=8)
    assert fingerprint(model, size=8) != fingerprint(nn.Sequential(model), size=8)
    with torch.no_grad():
        other.bias += 1
    assert fingerprint(model) != fingerprint(other)


def test_load_tensors__both_formats_and_damage(tmp_path):
    tensors = {"a": torch.arange(3)}
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save(tensors, tmp_path / "x.pt")
    for name in ("x.safetensors", "x.pt"):
        assert load_tensors(tmp_path / name)["a"].tolist() == [0, 1, 2]
    (tmp_path / "x.safetensors").write_bytes(b"damaged")
    with pytest.raises(EncoderError, match="cannot be read"):
        load_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("keys", [(), ("model",), ("state_dict", "model"), ("net",)])
def test_state_dict_of__usual_keys(tmp_path, keys):
    checkpoint = {"a": torch.ones(1)}
    for key in keys:
        checkpoint = {key: checkpoint, "epoch": 3}
    assert list(state_dict_of(checkpoint, tmp_path)) == ["a"]


@pytest.mark.parametrize("checkpoint", [[], {}, {"epoch": 3}, {"model": {"epoch": 3}}])
def test_state_dict_of__no_tensors(tmp_path, checkpoint):
    with pytest.raises(EncoderError, match="no state dict"):
        state_dict_of(checkpoint, tmp_path)


def test_first_line__of_any_error():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
    assert len(first_line(ValueError("x" * 999))) == 300
