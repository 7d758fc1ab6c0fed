"""Tiny models and images for the tests of encoders."""

import json
import os
import random

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TINY_PREPROCESS = {
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.25, 0.3],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def seeded(build, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def write_clip(folder, *, seed=0, **changes):
    """A folder in open_clip's local-dir format."""
    model_config = json.loads(json.dumps(TINY)) | changes.pop("model", {})
    model_config["text_cfg"] |= changes.pop("text", {})
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": model_config, "preprocess_cfg": TINY_PREPROCESS | changes.pop("preprocess", {})}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    model = seeded(lambda: open_clip.CLIP(**model_config), seed)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def smooth_image(height, width, seed=0):
    """A random uint8 photograph-like image: noise over several scales."""
    rng = np.random.default_rng(seed)
    layers = [
        Image.fromarray(rng.integers(0, 256, (k, k, 3), dtype=np.uint8)).resize((width, height)) for k in (3, 9, 40)
    ]
    return Image.fromarray(np.mean([np.asarray(layer, dtype=float) for layer in layers], axis=0).astype(np.uint8))


def as_batch(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def rng_states():
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())  # noqa: NPY002


class Exploit:
    """Unpickling this runs code: it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Net(nn.Module):
    """A user's classifier, with what an encoder might disturb."""

    def __init__(self, channels=3):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 10)
        self.unused = nn.Linear(1, 1)
        self.fail = False

    def forward(self, x):
        maps = self.stem(x)
        if self.fail:
            raise ValueError("out of order")
        return self.head(self.drop(maps.mean((2, 3))))


def resnet(block=BasicBlock, layers=(1, 1, 1, 1), **options):
    """A ResNet whose batch norms have seen data, so that none is the identity."""

    def build():
        net = ResNet(block, list(layers), num_classes=7, **options)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        return net.eval()

    return seeded(build)
