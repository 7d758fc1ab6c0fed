"""With real models of transformers, built here from small configs with random weights."""

import pytest
import torch

from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.captions.image_to_text import TransformersCaptioner, as_pil, describe, load_captions
from lightning_failures.errors import ConfigurationError, DataError
from tests.helpers.captioners import save_captioner

IMAGES = [torch.zeros(3, 40, 20), torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.ones(1, 5, 9)]


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    return save_captioner(tmp_path_factory.mktemp("blip"))


def test_transformers__captions_are_those_of_the_model(blip, monkeypatch):
    import transformers

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _, captioner = load_captions(f"captioner:{blip}")
    before = torch.random.get_rng_state()
    with torch.inference_mode():  # as in a validation
        texts = describe(captioner, IMAGES)
    assert torch.equal(before, torch.random.get_rng_state())
    assert len(texts) == len(IMAGES)
    assert len(set(texts)) > 1

    model = transformers.BlipForConditionalGeneration.from_pretrained(blip).eval()
    pixels = transformers.AutoImageProcessor.from_pretrained(blip)(images=[as_pil(IMAGES[1])], return_tensors="pt")
    tokens = model.generate(**pixels, max_new_tokens=40, do_sample=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(blip)
    assert texts[1] == tokenizer.batch_decode(tokens, skip_special_tokens=True)[0].strip()
    assert describe(captioner, IMAGES[1:2]) == texts[1:2]  # no other image of the batch matters


def test_transformers__another_architecture(tmp_path):
    folder = save_captioner(tmp_path, "vision-encoder-decoder")
    assert len(describe(TransformersCaptioner(folder), IMAGES)) == len(IMAGES)


def test_transformers__a_folder_without_a_model(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigurationError, match=r"captions='captioner:.*is not a model of transformers"):
            load_captions(f"captioner:{folder}")


def test_transformers__code_is_never_run(tmp_path):
    folder = save_captioner(tmp_path)
    (folder / "modeling.py").write_text("raise SystemExit('this code ran')")
    with pytest.raises(ConfigurationError, match=r"its own code \(modeling.py\), which is never run"):
        load_captions(f"captioner:{folder}")
    (folder / "modeling.py").unlink()
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("{", '{"auto_map": {"AutoModel": "modeling.Model"},', 1))
    with pytest.raises(ConfigurationError, match=r"its own code \(auto_map\)"):
        load_captions(f"captioner:{folder}")


def test_transformers__weights_that_may_run_code_are_refused(tmp_path):
    folder = save_captioner(tmp_path)
    (weights,) = folder.glob("*.safetensors")
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match="no weights as safetensors"):
        load_captions(f"captioner:{folder}")


def test_transformers__a_damaged_file_is_named_when_it_is_loaded(tmp_path):
    folder = save_captioner(tmp_path)
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(b"damaged")
    _, captioner = load_captions(f"captioner:{folder}")
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        describe(captioner, IMAGES)


def test_load_captions__everything_else():
    assert load_captions(None) == (None, None)
    words = CaptionVocabulary(adjectives=("red",))
    assert load_captions(words) == (words, None)
    assert load_captions("digits")[0].noun == "digit"
    with pytest.raises(ConfigurationError, match="got int"):
        load_captions(3)
    with pytest.raises(ConfigurationError, match="neither a packaged vocabulary"):
        load_captions("nothing")


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (["a", "b"], "returned 2 texts for 3 images"),
        (["a", "b", 3], "one of them is int"),
        (["a", "b", None], "one of them is NoneType"),
        ("abc", "a list of texts, got str"),
        (None, "a list of texts, got NoneType"),
        (iter(["a", "b", "c"]), "a list of texts, got list_iterator"),
    ],
)
def test_describe__says_what_is_wrong(returned, said):
    def captioner(images):
        return returned

    with pytest.raises(DataError, match=f"The captioner captioner .*{said}"):
        describe(captioner, IMAGES)


def test_as_pil__shapes_and_values():
    image = as_pil(torch.tensor([[[0.0, 1.0, 2.0, float("nan")]]]))
    assert (image.mode, image.size) == ("RGB", (4, 1))
    assert [image.getpixel((i, 0)) for i in range(4)] == [(0, 0, 0), (255,) * 3, (255,) * 3, (0, 0, 0)]
    with pytest.raises(DataError, match="shape"):
        as_pil(torch.zeros(4, 2, 2))
