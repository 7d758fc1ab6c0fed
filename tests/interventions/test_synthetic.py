"""What AddSynthetic decides: what it asks for, what it keeps, and what happens when things go wrong."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from lightning_failures import FailureModes
from lightning_failures.bundled.digits import CLASSES, ColouredDigits
from lightning_failures.bundled.digits.captions import caption
from lightning_failures.directions import fit_failure_directions
from lightning_failures.directions.decoding import decoding_targets
from lightning_failures.errors import ConfigurationError, GeneratorError
from lightning_failures.interventions import AddSynthetic
from lightning_failures.interventions.synthesis.generate import image_seeds
from lightning_failures.interventions.synthesis.ledger import Ledger
from tests.interventions.synthesis_tools import (
    HARD,
    PLANTED,
    Decoder,
    Painter,
    TestRound,
    discovery,
    encoder,
    examples,
    report,
)


def decided(folder, painter=None, *, per_class=6, max_share=0.5, given=None, report=None, **options):
    """The decision, its entries by class, and the generator."""
    painter = painter or Painter()
    round = TestRound(folder) if report is None else TestRound(folder, report=report)
    one = AddSynthetic(painter, per_class, max_share=max_share, **options)
    decision = one.decide(given or examples(), round)
    return decision, {entry["class"]: entry for entry in decision.classes}, painter


def on_disk(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


# -- what is asked for, and what is kept -------------------------------------------------------------------------


def test_decide__images_of_the_hardest_caption_for_classes_with_a_pattern(tmp_path):
    decision, entries, painter = decided(tmp_path)
    assert decision.weights.tolist() == [1.0] * 400
    assert decision.added.tolist() == list(range(12))
    assert painter.closed == 1
    assert [entries[name]["added"] for name in CLASSES] == [6 if k in PLANTED else 0 for k in range(10)]
    assert entries["zero"] == {"class": "zero", "examples": 40, "added": 0, "reason": "no pattern"}
    assert entries["three"] == {
        "class": "three",
        "examples": 40,
        "added": 6,
        "prompt": "a photo of a red three",
        "made": 6,
        "reused": 0,
        "dropped": {},
        "unsafe": 0,
        "reason": None,
    }
    rows = Ledger(tmp_path).rows
    assert {(row.class_index, row.prompt, row.direction) for row in rows} == {
        (k, caption(CLASSES[k], tint=HARD), "hard caption") for k in PLANTED
    }
    assert {(row.model, row.licence, row.epoch, row.direction_epoch) for row in rows} == {("painter", "MIT", 1, 0)}
    assert all(row.decision_value is not None and row.decision_value < 0 for row in rows)
    assert len({row.seed for row in rows}) == 12
    assert json.dumps(decision.classes)


@pytest.mark.parametrize(
    ("prompt", "text", "told"),
    [("reference", "a photo of a three", "reference caption"), ("easy", "a photo of a green three", "easy caption")],
)
def test_decide__comparison_prompts_need_not_be_hard(tmp_path, prompt, text, told):
    _, entries, _ = decided(tmp_path, prompt=prompt)
    assert (entries["three"]["prompt"], entries["three"]["added"]) == (text, 6)
    rows = [row for row in Ledger(tmp_path).rows if row.class_index == 3]
    assert {row.direction for row in rows} == {told}
    assert all(row.decision_value > 0 for row in rows)


def test_decide__images_that_are_not_hard_are_dropped(tmp_path):
    wrong = report(hardest_captions=("a photo of a green three",))
    decision, entries, painter = decided(tmp_path, report=wrong, per_class=4, candidates=2)
    assert not len(decision.added)
    assert entries["three"]["dropped"] == {"not hard": 8}
    assert entries["three"]["reason"] == "0 of 4: the others were dropped (8 not hard)"
    assert len(painter.seeds) == 16
    assert on_disk(tmp_path) == ["ledger.jsonl"]
    decision, _, _ = decided(tmp_path / "other", report=wrong, per_class=4, only_hard=False)
    assert len(decision.added) == 8


def test_decide__what_a_safety_checker_replaced_is_counted(tmp_path):
    class Careful(Painter):
        flagged = 5  # before

        def generate(self, prompts, seeds):
            self.flagged += len(seeds)
            return super().generate(prompts, seeds) * 0

    _, entries, _ = decided(tmp_path, Careful(), candidates=1)
    assert (entries["three"]["unsafe"], entries["three"]["dropped"]) == (6, {"black": 6})


def test_decide__every_image_dropped(tmp_path):
    decision, entries, painter = decided(tmp_path, Painter(lambda number, image: image * 0), candidates=3)
    assert not len(decision.added)
    assert entries["seven"]["dropped"] == {"black": 18}
    assert entries["seven"]["reason"] == "0 of 6: the others were dropped (18 black)"
    assert painter.closed == 1
    assert [row.dropped for row in Ledger(tmp_path).rows] == ["black"] * 36


def test_decide__bad_images_are_replaced_and_counted(tmp_path):
    def spoil(number, image):
        if number % 6 == 0:
            return torch.zeros_like(image)
        if number % 6 == 1:
            return torch.full_like(image, 90)
        if number % 6 == 2:
            return first.setdefault(0, image)
        return image

    first: dict[int, torch.Tensor] = {}
    _, entries, _ = decided(tmp_path, Painter(spoil), candidates=5)
    entry = entries["three"]
    assert entry["added"] == 6
    assert entry["dropped"]["black"] >= 1
    assert entry["dropped"]["constant"] >= 1
    assert entry["dropped"]["near copy"] >= 1
    assert entry["made"] == 6 + sum(entry["dropped"].values())
    assert entry["reason"] is None


def test_decide__wrong_sizes_are_dropped(tmp_path):
    class Growing(Painter):
        def generate(self, prompts, seeds):
            images = super().generate(prompts, seeds)
            return images if len(self.seeds) % 4 else images.repeat_interleave(2, 2)

    decision, entries, _ = decided(tmp_path, Growing(), batch_size=2)
    assert {Ledger(tmp_path).image(row).shape for row in Ledger(tmp_path).images} == {(3, 32, 32)}
    assert entries["three"]["dropped"]["wrong size"] >= 2
    assert len(decision.added) == 12


def test_decide__images_that_do_not_fit_the_training_set_are_an_error_at_once(tmp_path):
    painter = Painter(lambda number, image: image.repeat_interleave(2, 2).repeat_interleave(2, 3))
    one = AddSynthetic(painter, 6, max_share=0.5)
    one.source(ColouredDigits("train", size=20), tmp_path)
    with pytest.raises(ConfigurationError, match=r"\(3, 32, 32\).*of 64 x 64 pixels.*transform="):
        one.decide(examples(), TestRound(tmp_path))
    assert painter.closed == 1
    assert len(painter.seeds) <= one.batch_size
    resized = AddSynthetic(painter, 6, max_share=0.5, transform=small)
    images = resized.source(ColouredDigits("train", size=20), tmp_path)
    decision = resized.decide(examples(), TestRound(tmp_path))
    image, label = images[int(decision.added[-1])]
    assert (image.shape, image.dtype, label) == ((3, 32, 32), torch.float32, 7)


def small(image):
    if not isinstance(image, Image.Image):
        raise TypeError
    return torch.from_numpy(np.array(image.resize((32, 32)))).permute(2, 0, 1).float() / 255


def test_source__examples_like_those_of_the_training_set(tmp_path):
    digits = ColouredDigits("train", size=20)
    painter = Painter()
    one = AddSynthetic(painter, 6, max_share=0.5)
    images = one.source(digits, tmp_path)
    assert len(images) == 0
    decision = one.decide(examples(), TestRound(tmp_path))
    assert [images[k][1] for k in decision.added] == [3] * 6 + [7] * 6
    image, _ = images[int(decision.added[0])]
    assert torch.equal(image, digits.transform(Ledger(tmp_path).image(0)))
    with pytest.raises(ConfigurationError, match="a Resize"):  # what is there does not fit another training set
        one.source([(torch.zeros(3, 8, 8), 0)], tmp_path)
    whole = AddSynthetic(painter, make_item=lambda image, label: {"size": image.size, "label": label})
    assert whole.source(None, tmp_path)[11] == {"size": (32, 32), "label": 7}


def test_decide__capped_as_a_share_of_real_images(tmp_path):
    _, entries, _ = decided(tmp_path, per_class=100, max_share=0.1)
    assert (entries["three"]["added"], entries["three"]["reason"]) == (4, "capped at max_share")
    decision, entries, painter = decided(tmp_path / "few", max_share=0.1, given=examples(per_class=9))
    assert not len(decision.added)
    assert entries["three"]["reason"] == "too few training examples for max_share=0.1"
    assert not painter.seeds


def test_decide__class_without_captions(tmp_path):
    decision, entries, painter = decided(tmp_path, report=report(hardest_captions=()))
    assert not len(decision.added)
    assert entries["three"]["reason"] == "no captions"
    assert not painter.seeds
    assert not on_disk(tmp_path)
    _, entries, _ = decided(tmp_path, report=report(reference_caption=None), prompt="reference")
    assert entries["three"]["prompt"] == "a photo of a three"


def test_decide__no_pattern_anywhere_opens_no_generator(tmp_path):
    given = replace(examples(), reasons=("no pattern",) * 10)
    decision, _, painter = decided(tmp_path, given=given)
    assert not len(decision.added)
    assert painter.closed == 0


def test_decide__a_later_decision_replaces_or_keeps_the_images_of_former_ones(tmp_path):
    first = AddSynthetic(Painter(), 6, max_share=0.5).decide(examples(), TestRound(tmp_path))
    second = AddSynthetic(Painter(), 6, max_share=0.5).decide(examples(), TestRound(tmp_path, epoch=2))
    assert not set(first.added) & set(second.added)
    kept = AddSynthetic(Painter(), 6, max_share=0.25, keep=True).decide(examples(), TestRound(tmp_path, epoch=3))
    rows = Ledger(tmp_path)
    epochs = [rows[rows.row_of_image(int(k))].epoch for k in kept.added]
    assert epochs == [3] * 6 + [2] * 4 + [3] * 6 + [2] * 4  # max_share leaves room for 10 a class
    again = AddSynthetic(Painter(), 6, max_share=0.5, keep=True).decide(examples(), TestRound(tmp_path, epoch=1))
    assert again.added.tolist() == first.added.tolist()  # a run resumed earlier knows nothing of later epochs


def test_image_seeds__differ_by_seed_epoch_class_and_number():
    seeds = [
        seed
        for start in (0, 1)
        for epoch in (1, 2)
        for k in (3, 7)
        for seed, _ in zip(image_seeds(start, epoch, k), range(50), strict=False)
    ]
    assert len(set(seeds)) == 400
    assert 0 <= min(seeds) <= max(seeds) < 2**32


# -- directions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["direction", "direction_reference", "direction_easy"])
def test_decide__directions_are_decoded_without_a_caption(tmp_path, prompt):
    decoder = Decoder()
    _, entries, _ = decided(tmp_path, decoder, prompt=prompt, alpha=0.3, only_hard=False)
    found = discovery()[0]
    directions = fit_failure_directions(
        found.embeddings, found.labels, found.correct, ids=found.ids, whiten=False, permutations=0
    )
    aims = {}
    for k in PLANTED:
        (reference,) = encoder().encode_texts([caption(CLASSES[k])])
        targets = decoding_targets(reference, directions.weight[directions.row(k)], alpha=0.3)
        aims[k] = {"direction": targets.hard, "direction_easy": targets.easy}.get(prompt, targets.reference)
    for embeddings in decoder.decoded:
        near = {k: (embeddings - aim).abs().max() for k, aim in aims.items()}
        assert min(near.values()) < 1e-5
    assert entries["three"]["added"] > 0
    told = {
        "direction": "hard direction, decoded at 0.3 of the arc",
        "direction_reference": "reference caption, decoded",
        "direction_easy": "easy direction, decoded at 0.3 of the arc",
    }
    assert {row.direction for row in Ledger(tmp_path).rows} == {told[prompt]}


def test_decide__decoder_of_another_encoder_is_refused(tmp_path):
    decoder = Decoder()
    decoder.encoder_fingerprint = "another"
    with pytest.raises(GeneratorError, match="embeddings of another encoder than embedded:digits"):
        decided(tmp_path, decoder, prompt="direction")
    assert decoder.closed >= 1
    assert not on_disk(tmp_path)


class Mute:
    """An encoder that knows no texts."""

    name = fingerprint = "mute"
    dim = 4

    def encode_images(self, images):
        return images.flatten(1)[:, :4]


def test_check_encoder__what_cannot_work_is_known_at_set_up():
    for prompt in ("hard", "easy", "direction"):
        with pytest.raises(ConfigurationError, match=r"mute does not\. Name another, or use prompt='reference'"):
            AddSynthetic(Decoder(), prompt=prompt).check_encoder(Mute())
    AddSynthetic(Painter(), prompt="reference").check_encoder(Mute())
    AddSynthetic(Painter()).check_encoder(encoder())
    decoder = Decoder()
    AddSynthetic(decoder, prompt="direction").check_encoder(encoder())
    decoder.encoder_fingerprint = "another"
    with pytest.raises(GeneratorError, match="of another encoder than embedded:digits"):
        AddSynthetic(decoder, prompt="direction").check_encoder(encoder())


# -- faults ----------------------------------------------------------------------------------------------------------


def test_decide__generator_that_raises_leaves_what_was_made(tmp_path):
    broken = Painter(fails_at=5)
    with pytest.raises(RuntimeError, match="out of paint"):
        decided(tmp_path, broken, batch_size=2)
    assert broken.closed == 1
    assert len(Ledger(tmp_path).images) == 4  # whole batches
    made = {row.seed for row in Ledger(tmp_path).rows}
    decision, entries, painter = decided(tmp_path, batch_size=2)
    assert (entries["three"]["made"], entries["three"]["reused"]) == (2, 4)
    assert not made & set(painter.seeds)
    assert len(decision.added) == 12


def test_decide__broken_contract_is_an_error(tmp_path):
    with pytest.raises(GeneratorError, match=r"painter must give \(6, 3, H, W\) uint8"):
        decided(tmp_path, Painter(lambda number, image: image.float()))


def test_decide__a_finished_decision_is_not_made_again(tmp_path):
    first, _, _ = decided(tmp_path)
    before = on_disk(tmp_path), (tmp_path / "ledger.jsonl").read_bytes()
    second, entries, painter = decided(tmp_path)
    assert second.added.tolist() == first.added.tolist()
    assert (on_disk(tmp_path), (tmp_path / "ledger.jsonl").read_bytes()) == before
    assert not painter.seeds
    assert (entries["three"]["made"], entries["three"]["reused"]) == (0, 6)
    (tmp_path / "images" / "000002.png").unlink()
    third, _, painter = decided(tmp_path)
    assert len(painter.seeds) == 1
    assert len(third.added) == 12


def test_decide__other_words_are_other_images(tmp_path):
    decided(tmp_path)
    _, entries, painter = decided(tmp_path, report=report(hardest_captions=("a photo of a thin red three",)))
    assert len(painter.seeds) >= 6
    assert entries["three"]["reused"] == 0


def slowly(number, image):
    time.sleep(0.02)
    return image


def decide_slowly(folder):
    torch.set_num_threads(1)
    decided(folder, Painter(slowly), per_class=20, batch_size=2)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the child does what workers of a DataLoader do
def test_decide__killed_during_synthesis_and_resumed(tmp_path):
    encoder(), discovery()
    process = multiprocessing.get_context("fork").Process(target=decide_slowly, args=(tmp_path,))
    process.start()
    while len(Ledger(tmp_path)) < 5 and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write('{"model": "pain')  # at worst
    (tmp_path / "images" / ".writing-torn").write_bytes(b"half a picture")
    before = Ledger(tmp_path).rows
    assert 5 <= len(before) < 40

    decision, entries, painter = decided(tmp_path, per_class=20, batch_size=2)
    assert len(painter.seeds) == 40 - len(before)
    assert sum(entry.get("reused", 0) for entry in entries.values()) == len(before)
    rows = Ledger(tmp_path).rows
    assert rows[: len(before)] == before
    assert len({(row.class_index, row.seed) for row in rows}) == len(rows) == 40
    assert decision.added.tolist() == list(range(40))
    decided(tmp_path / "alone", per_class=20, batch_size=2)
    one, two = Ledger(tmp_path), Ledger(tmp_path / "alone")
    assert all(torch.equal(one.image(k), two.image(k)) for k in range(40))  # as if nothing had happened


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    """A real file system of a given size, where that is permitted."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_decide__disk_full_on_a_real_small_disk(tmp_path):
    with small_disk(tmp_path / "disk", "64k"):
        with pytest.raises(GeneratorError, match="No space left on device"):
            decided(tmp_path / "disk", per_class=20)
        check_after_full_disk(tmp_path / "disk")


def test_decide__disk_full_as_the_system_reports_it(tmp_path, monkeypatch):
    import errno

    from lightning_failures.interventions.synthesis import ledger

    write = ledger.write_atomically

    def full(path, content):
        if len(list(tmp_path.rglob("*.png"))) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(ledger, "write_atomically", full)
        with pytest.raises(GeneratorError, match="No space left on device"):
            decided(tmp_path, per_class=20)
    assert check_after_full_disk(tmp_path) == 5
    decision, _, painter = decided(tmp_path, per_class=20)
    assert len(decision.added) == 40
    assert len(painter.seeds) == 35


def check_after_full_disk(folder: Path) -> int:
    found = Ledger(folder)
    assert 0 < len(found.images) < 40
    for row in found.images:
        assert found.image(row).shape == (3, 32, 32)
    assert on_disk(folder) == sorted(["ledger.jsonl", *(str(found[row].file) for row in found.images)])
    return len(found.images)


@pytest.mark.parametrize("text", ["../../ red three", "red three\n/etc/passwd", "<img src=x> red three \0 C:\\"])
def test_decide__hostile_captions_never_reach_file_names(tmp_path, text):
    decision, entries, _ = decided(tmp_path / "a" / "b", report=report(hardest_captions=(text,)))
    assert (entries["three"]["prompt"], entries["three"]["added"]) == (text, 6)
    rows = Ledger(tmp_path / "a" / "b")
    pictures = [f"a/b/images/{row:06d}.png" for row in rows.images]
    assert on_disk(tmp_path) == [*pictures, "a/b/ledger.jsonl"]
    assert len(decision.added) == len(pictures)


# -- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"generator": 7}, "generator"),
        ({"per_class": 0}, "per_class"),
        ({"per_class": 2.5}, "per_class"),
        ({"prompt": "worst"}, "prompt"),
        ({"max_share": 0.0}, "max_share"),
        ({"max_share": 1.5}, "max_share"),
        ({"candidates": 0}, "candidates"),
        ({"alpha": -0.1}, "alpha"),
        ({"batch_size": 0}, "batch_size"),
        ({"transform": "resize"}, "transform"),
        ({"transform": len, "make_item": max}, "make_item"),
        ({"generator": max, "prompt": "direction"}, "generator"),
        ({"generator": Painter(), "prompt": "direction_easy"}, "generator"),
        ({"start_epoch": -1}, "start_epoch"),
    ],
)
def test_options__refused_with_owner_and_name(options, name):
    with pytest.raises(ConfigurationError, match=rf"AddSynthetic\({name}="):
        AddSynthetic(**({"generator": "embedded:digits"} | options))


def test_options__are_told_as_plain_values():
    told = AddSynthetic(Painter(), transform=small, alpha=0.1).options
    assert (told["generator"], told["transform"], told["alpha"]) == ("Painter", "small", 0.1)
    assert json.dumps(told)


@pytest.mark.parametrize("prompt", ["hard", "direction"])
def test_prepare__a_wrong_name_is_an_error_before_the_first_batch(tmp_path, prompt):
    with pytest.raises(GeneratorError, match=r"Did you mean embedded:digits\?"):
        AddSynthetic("embedded:digts", prompt=prompt).prepare()
    with pytest.raises(GeneratorError, match="neither a folder nor the id"):
        AddSynthetic("no such thing", prompt=prompt).prepare()
    with pytest.raises(GeneratorError, match="not a diffusers pipeline"):
        AddSynthetic(str(tmp_path), prompt=prompt).prepare()
    AddSynthetic(Decoder(), prompt=prompt).prepare()


def test_options__from_yaml(monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    options = {"generator": "embedded:digits", "per_class": 20, "prompt": "direction", "head_only": True}
    synthetic = {"class_path": "lightning_failures.interventions.AddSynthetic", "init_args": options}
    modes = {"class_path": "lightning_failures.FailureModes", "init_args": {"interventions": [synthetic]}}
    parser = ArgumentParser()
    parser.add_argument("--callback", type=FailureModes)
    (built,) = parser.instantiate_classes(parser.parse_object({"callback": modes})).callback.interventions
    assert repr(built) == repr(AddSynthetic(**options))


def test_options__generator_and_transform_from_yaml(monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    options = {
        "generator": {"class_path": f"{Painter.__module__}.Painter"},
        "transform": {"class_path": "torchvision.transforms.ToTensor"},
    }
    parser = ArgumentParser()
    parser.add_argument("--one", type=AddSynthetic)
    values = {"class_path": "lightning_failures.interventions.AddSynthetic", "init_args": options}
    one = parser.instantiate_classes(parser.parse_object({"one": values})).one
    assert isinstance(one.generator, Painter)
    assert one.transform(Image.new("RGB", (2, 2))).shape == (3, 2, 2)
