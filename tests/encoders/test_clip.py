"""OpenCLIPEncoder, on tiny models in open_clip's own file format."""

import gzip
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.pretrained import _PRETRAINED
from safetensors.torch import load_file, save_file

from lightning_failures.encoders import OpenCLIPEncoder, gives_maps, gives_texts
from lightning_failures.encoders import clip as clip_module
from lightning_failures.encoders.open_clip_patches import quiet
from lightning_failures.errors import DataError, EncoderError
from tests.encoders.tiny import TINY, TINY_PREPROCESS, Exploit, as_batch, rng_states, smooth_image, write_clip


def test_open_clip__unit_vectors_on_cpu(clip, images):
    pictures, texts = clip.encode_images(images), clip.encode_texts(["a photo of a 3", "red"])
    assert pictures.shape == (5, 16)
    assert texts.shape == (2, 16)
    for embedding in (pictures, texts):
        assert embedding.dtype == torch.float32
        assert embedding.device.type == "cpu"
        assert not embedding.requires_grad
        assert not embedding.is_inference()
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(len(embedding)))
    assert clip.dim == 16
    assert gives_texts(clip)
    assert not gives_maps(clip)
    assert clip.encode_images(images[:0]).shape == (0, 16)
    assert clip.encode_texts([]).shape == (0, 16)


@pytest.mark.parametrize("size", [(32, 32), (100, 70), (50, 211), (20, 12)])
def test_open_clip__same_as_open_clip_itself(clip, clip_folder, size):
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip_folder}")
    image = smooth_image(*size)
    with torch.no_grad():
        picture = model.encode_image(transform(image)[None], normalize=True)
        text = model.encode_text(tokenizer(["a photo of an apple"]), normalize=True)
    torch.testing.assert_close(clip.encode_texts(["a photo of an apple"]), text, atol=1e-6, rtol=0)
    ours = clip.encode_images(as_batch(image).float() / 255)
    torch.testing.assert_close(ours, picture, atol=3e-3, rtol=0)


def test_open_clip__gray_and_bytes(clip):
    gray = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    colour = gray.expand(-1, 3, -1, -1)
    torch.testing.assert_close(clip.encode_images(gray), clip.encode_images(colour), atol=1e-6, rtol=0)
    torch.testing.assert_close(clip.encode_images(gray), clip.encode_images(gray.float() / 255), atol=1e-6, rtol=0)


def test_open_clip__surroundings_do_not_matter(clip, images):
    expected = clip.encode_images(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(clip.encode_images(images), expected)
        assert torch.is_autocast_enabled("cpu")
        assert clip.encode_texts(["red"]).dtype == torch.float32
    torch.set_float32_matmul_precision("medium")  # shortens products on CPUs too that have instructions for it
    try:
        assert torch.equal(clip.encode_images(images), expected)
    finally:
        torch.set_float32_matmul_precision("highest")
    with torch.inference_mode():
        inside = clip.encode_images(images.clone())
        assert torch.equal(inside, expected)
        assert not inside.is_inference()
    with torch.enable_grad():
        assert torch.equal(clip.encode_images(images.clone().requires_grad_()), expected)
        assert torch.is_grad_enabled()
    assert all(not p.requires_grad for p in clip._model.parameters())
    assert not any(m.training for m in clip._model.modules())


def test_open_clip__default_dtype_of_a_double_precision_run(clip, clip_folder, images):
    expected = clip.encode_images(images)
    torch.set_default_dtype(torch.float64)  # as Lightning does inside a step with precision="64-true"
    try:
        encoder = OpenCLIPEncoder(str(clip_folder))
        for embedding in (clip.encode_images(images), encoder.encode_images(images.double())):
            torch.testing.assert_close(embedding, expected, atol=1e-6, rtol=0)
        assert encoder.encode_texts([]).dtype == encoder.encode_images(images[:0]).dtype == torch.float32
        assert encoder.fingerprint == clip.fingerprint
    finally:
        torch.set_default_dtype(torch.float32)


def test_open_clip__one_string_is_no_sequence(clip):
    with pytest.raises(DataError, match=r"\['red'\]"):
        clip.encode_texts("red")


def test_open_clip__batch_size_does_not_matter(clip, clip_folder, images):
    one_by_one = torch.cat([clip.encode_images(image[None]) for image in images])
    small = OpenCLIPEncoder(str(clip_folder), batch_size=2)
    torch.testing.assert_close(clip.encode_images(images), one_by_one, atol=1e-6, rtol=0)
    torch.testing.assert_close(small.encode_images(images), one_by_one, atol=1e-6, rtol=0)
    texts = ["one", "two words", "three more words"]
    torch.testing.assert_close(small.encode_texts(texts), clip.encode_texts(texts), atol=1e-6, rtol=0)
    assert small.fingerprint == clip.fingerprint


def test_open_clip__random_streams_and_logging_untouched(clip_folder, images, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    before = rng_states()
    encoder = OpenCLIPEncoder(f"local-dir:{clip_folder}")
    encoder.encode_images(images)
    encoder.encode_texts(["red"])
    assert rng_states() == before
    assert root.handlers == []
    assert root.filters == []


def test_open_clip__works_when_built_in_inference_mode(clip, clip_folder, images):
    with torch.inference_mode():
        encoder = OpenCLIPEncoder(f"local-dir:{clip_folder}")
    assert torch.equal(encoder.encode_images(images), clip.encode_images(images))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"preprocess": {"mean": [0.4, 0.5, 0.61]}},
        {"preprocess": {"interpolation": "bilinear"}},
        {"model": {"quick_gelu": True}},
        {"text": {"tokenizer_kwargs": {"clean": "canonicalize"}}},
    ],
    ids=str,
)
def test_fingerprint__covers(clip, tmp_path, changes):
    assert OpenCLIPEncoder(f"local-dir:{write_clip(tmp_path, **changes)}").fingerprint != clip.fingerprint


@pytest.mark.slow
def test_fingerprint__covers_the_vocabulary(tmp_path):
    """Also where the configuration is the same word for word."""
    folder = write_clip(tmp_path / "clip", text={"tokenizer_kwargs": {"bpe_path": str(tmp_path / "merges.gz")}})
    lines = gzip.decompress(Path(open_clip.tokenizer.default_bpe()).read_bytes()).split(b"\n")
    fingerprints = []
    for _ in range(2):
        (tmp_path / "merges.gz").write_bytes(gzip.compress(b"\n".join(lines)))
        fingerprints.append(OpenCLIPEncoder(str(folder)).fingerprint)
        lines[40_000], lines[40_001] = lines[40_001], lines[40_000]
    assert fingerprints[0] != fingerprints[1]


def test_fingerprint__does_not_cover_the_place(clip, clip_folder, tmp_path):
    shutil.copytree(clip_folder, tmp_path / "copy")
    assert OpenCLIPEncoder(str(tmp_path / "copy")).fingerprint == clip.fingerprint


def test_fingerprint__one_bit_of_a_weight(clip, clip_folder, tmp_path):
    shutil.copytree(clip_folder, tmp_path / "copy")
    weights = load_file(tmp_path / "copy" / "open_clip_model.safetensors")
    weights["visual.proj"].view(torch.int32)[0, 0] ^= 1
    save_file(weights, tmp_path / "copy" / "open_clip_model.safetensors")
    assert OpenCLIPEncoder(str(tmp_path / "copy")).fingerprint != clip.fingerprint


@pytest.fixture
def tag(clip_folder, tmp_path, monkeypatch):
    """A built-in architecture without QuickGELU, and a tag whose weights want it, as ViT-B-32/openai."""
    (tmp_path / "Tiny-1.json").write_text(json.dumps(TINY))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [*open_clip.factory._MODEL_CONFIG_PATHS])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    open_clip.add_model_config(tmp_path / "Tiny-1.json")
    cfg = {"file": str(clip_folder / "open_clip_model.safetensors"), "quick_gelu": True} | TINY_PREPROCESS
    monkeypatch.setitem(_PRETRAINED, "Tiny-1", {"quick": cfg})
    return cfg


def test_open_clip__activation_of_the_tag(tag, clip, images, tmp_path):
    quick = OpenCLIPEncoder(f"local-dir:{write_clip(tmp_path / 'quick', model={'quick_gelu': True})}")
    tagged = OpenCLIPEncoder("Tiny-1/quick")
    assert torch.equal(tagged.encode_images(images), quick.encode_images(images))
    assert not torch.allclose(tagged.encode_images(images), clip.encode_images(images), atol=1e-4)
    assert tagged.preprocessing == clip.preprocessing


def test_open_clip__mismatched_activation_is_an_error(tag, clip_folder):
    model = open_clip.create_model(f"local-dir:{clip_folder}")
    with pytest.raises(EncoderError, match=r"trained with QuickGELU, but 3 of 3 blocks"):
        clip_module._check_activation("x", model, quick_gelu=True)
    clip_module._check_activation("x", model, quick_gelu=False)
    source = clip_module._Source("Tiny-1", "quick", quick_gelu=False)
    with pytest.raises(EncoderError, match="QuickGELU mismatch"), quiet():
        clip_module._load("x", source)


def test_open_clip__vit_b_32_openai_wants_quick_gelu():
    for name in ("ViT-B-32/openai", "ViT-B-32-quickgelu/openai"):
        assert clip_module._resolve(name, None, None).quick_gelu
    assert not clip_module._resolve("ViT-B-32/laion2b_s34b_b79k", None, None).quick_gelu


def test_open_clip__checkpoint_file(tag, clip, clip_folder, images):
    file = str(clip_folder / "open_clip_model.safetensors")
    with pytest.raises(EncoderError, match="arch='ViT-B-32'"):
        OpenCLIPEncoder(file)
    with pytest.raises(EncoderError, match="Did you mean Tiny-1"):
        OpenCLIPEncoder(file, arch="Tiny1")
    published = OpenCLIPEncoder(file, arch="Tiny-1")
    assert published.preprocessing == clip.preprocessing
    assert torch.equal(published.encode_images(images), clip.encode_images(images))
    given = OpenCLIPEncoder(file, arch="Tiny-1", preprocess=TINY_PREPROCESS | {"mean": [0.5] * 3})
    assert given.preprocessing.mean == (0.5, 0.5, 0.5)
    _PRETRAINED["Tiny-1"]["other"] = tag | {"mean": [0, 0, 0]}
    with pytest.raises(EncoderError, match="preprocess="):
        OpenCLIPEncoder(file, arch="Tiny-1")


def test_open_clip__unknown_names():
    with pytest.raises(EncoderError, match=r"Did you mean .*ViT-B-32/openai") as error:
        OpenCLIPEncoder("ViT-B-32/opnai")
    assert "local-dir:" in str(error.value)
    with pytest.raises(EncoderError, match="ViT-B-32 has the tags openai, "):
        OpenCLIPEncoder("ViT-B-32")
    with pytest.raises(EncoderError, match=r"open_clip_config.json is missing"):
        OpenCLIPEncoder("local-dir:/nowhere/at/all")
    with pytest.raises(EncoderError, match="device='cuda:99'"):
        OpenCLIPEncoder("ViT-B-32/openai", device="cuda:99")


def test_open_clip__folder_without_weights(clip_folder, tmp_path):
    shutil.copy(clip_folder / "open_clip_config.json", tmp_path)
    with pytest.raises(EncoderError, match="could not be loaded"):  # not: random weights
        OpenCLIPEncoder(str(tmp_path))


def test_open_clip__weights_that_do_not_fit(clip_folder, tmp_path):
    shutil.copytree(clip_folder, tmp_path / "copy")
    weights = load_file(clip_folder / "open_clip_model.safetensors")
    del weights["visual.proj"]
    save_file(weights, tmp_path / "copy" / "open_clip_model.safetensors")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        OpenCLIPEncoder(str(tmp_path / "copy"))


def test_open_clip__code_is_refused(clip_folder, tmp_path):
    shutil.copy(clip_folder / "open_clip_config.json", tmp_path)
    torch.save({"state_dict": Exploit(tmp_path / "ran")}, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        OpenCLIPEncoder(str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.full((1, 3, 8, 8), 1.2), "1.2"),
        (torch.full((1, 3, 8, 8), -0.5), "undo it"),
        (torch.full((1, 3, 8, 8), float("nan")), "NaN"),
        (torch.zeros(1, 4, 8, 8), "channels"),
        (torch.zeros(3, 8, 8), "shape"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "int64"),
    ],
    ids=["high", "low", "nan", "channels", "shape", "dtype"],
)
def test_encode_images__refuses(clip, bad, message):
    with pytest.raises(DataError, match=message):
        clip.encode_images(bad)


def hub_cache(clip_folder, root):
    """A Hugging Face cache as a download leaves it."""
    snapshot = root / "models--org--tiny" / "snapshots" / ("a" * 40)
    shutil.copytree(clip_folder, snapshot)
    refs = root / "models--org--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)


def test_open_clip__cached_weights_need_no_network(clip, clip_folder, tmp_path, monkeypatch, images):
    from huggingface_hub import constants

    hub_cache(clip_folder, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: pytest.fail("asked the network"))
    encoder = OpenCLIPEncoder("hf-hub:org/tiny")
    assert torch.equal(encoder.encode_images(images), clip.encode_images(images))


def test_open_clip__silent_hub_does_not_hang(tmp_path, monkeypatch):
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections, never answers
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(clip_module, "_PROBE_SECONDS", 0.2)
        start = time.perf_counter()
        with pytest.raises(EncoderError, match="hub cannot be reached") as error:
            OpenCLIPEncoder("ViT-B-32/openai")
        assert time.perf_counter() - start < 5
    assert all(way in str(error.value) for way in ("local-dir:", "HF_HOME", "embedded:digits", "path"))


@pytest.mark.slow
def test_open_clip__offline_says_nothing_else(clip, clip_folder, tmp_path):
    code = (
        "import logging, sys\nfrom lightning_failures.encoders import load_encoder\n"
        "from lightning_failures.errors import EncoderError\n"
        "print('open_clip' in sys.modules or 'timm' in sys.modules)\n"
        "for name in ('ViT-B-32/openai', 'hf-hub:org/none'):\n"
        "    try: load_encoder(name)\n"
        "    except EncoderError as error: print('reached' in str(error))\n"
        f"print(load_encoder({str(clip_folder)!r}).fingerprint, logging.getLogger().handlers)"
    )
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "True", "True", clip.fingerprint, "[]"]
    assert done.stderr == ""


class Hub(BaseHTTPRequestHandler):
    """The part of a model hub that a download needs."""

    folder: Path

    def do_HEAD(self):
        file = self.folder / Path(self.path).name
        self.send_response(200 if self.path == "/" or file.is_file() else 404)
        if file.is_file():
            self.send_header("ETag", f'"{file.name}"')
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("Content-Length", str(file.stat().st_size))
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        file = self.folder / Path(self.path).name
        if file.is_file():
            self.wfile.write(file.read_bytes())

    def log_message(self, *args):
        pass


def test_open_clip__downloads_where_the_hub_answers(clip, clip_folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    handler = type("LocalHub", (Hub,), {"folder": clip_folder})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        fingerprint = OpenCLIPEncoder("hf-hub:org/tiny").fingerprint
        server.shutdown()
    assert fingerprint == clip.fingerprint
    assert [path.suffix for path in tmp_path.rglob("*.safetensors")]
