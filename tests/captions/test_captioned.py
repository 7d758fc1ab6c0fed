"""Candidates from captions of the examples: which are captioned, and that the test of the best one is honest."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from lightning_failures.analysis import analyse
from lightning_failures.captions.candidates import ClassCaptions
from lightning_failures.captions.captioned import MOST_IMAGES, captioned_source, sample_to_caption
from lightning_failures.core.budget import Deadline
from lightning_failures.data.grades import Grades
from lightning_failures.data.members import ClassSubset, members_of
from lightning_failures.errors import DataError

DIM = 80
WORDS = [f"word{chr(97 + i // 10)}{chr(97 + i % 10)}" for i in range(DIM)]


class Words:
    """A text encoder: a text is the sum of the axes of its words, and of one that all texts share."""

    def encode_texts(self, texts):
        vectors = torch.zeros(len(texts), DIM + 1)
        vectors[:, DIM] = 1
        for row, text in enumerate(texts):
            for axis, word in enumerate(WORDS):
                vectors[row, axis] += word in text
        return torch.nn.functional.normalize(vectors, dim=1)


class World:
    """Examples of one class; each image is its embedding, and a captioner names its largest coordinates."""

    def __init__(self, seed=0, n=120, rate=0.4, axis=None, groups=None):
        rng = np.random.default_rng(seed)
        self.x = torch.from_numpy(rng.normal(size=(n, DIM + 1)).astype("float32"))
        failed = rng.random(n) < rate
        if axis is not None:
            self.x[failed, axis] += 2.5
        self.ids = torch.from_numpy(rng.permutation(10 * n)[:n])
        self.grades = Grades(
            self.ids,
            torch.zeros(n).long(),
            torch.from_numpy(failed).long(),
            torch.ones(n),
            ("cat", "dog"),
            groups=None if groups is None else torch.from_numpy(groups),
        )
        self.row = {i: row for row, i in enumerate(self.ids.tolist())}
        self.described = []

    def images(self, ids):
        self.described += ids
        return [(self.x[self.row[i]] / 16 + 0.5).clamp(0, 1).expand(1, 1, DIM + 1) for i in ids]

    @staticmethod
    def captioner(images):
        largest = [np.argsort(-np.asarray(image)[0, :DIM, 0].astype(int), kind="stable")[:8] for image in images]
        return [f"a cat with {' and '.join(WORDS[axis] for axis in axes)}" for axes in largest]

    def source(self, captioner=None, **options):
        return captioned_source(Words(), captioner or self.captioner, self.grades, self.images, **options)

    def entry(self, source, permutations=99, **options):
        result = analyse(self.grades, self.x, captions=source, permutations=permutations, **options)
        return result.report.classes[0], result.report


def test_captioned__a_planted_word_is_found():
    world = World(axis=7)
    entry, _ = world.entry(world.source())
    assert entry.reference_caption == "a photo of a cat"
    assert entry.hardest_captions[0] == f"a photo of a cat, {WORDS[7]}"
    assert entry.caption_p_value == 0.01
    assert not any("cat, cat" in caption or "with" in caption for caption in entry.hardest_captions)


@pytest.mark.slow
def test_captioned__p_values_are_uniform_without_a_pattern():
    """Also where candidates are few and fit the examples that they were chosen from."""
    entries = [world.entry(world.source(seed=seed))[0] for seed in range(200) for world in [World(seed, n=60)]]
    p = np.array([entry.caption_p_value for entry in entries if entry.caption_p_value is not None])
    assert len(p) > 190
    assert kstest(p + np.random.default_rng(0).uniform(-0.01, 0, len(p)), "uniform").pvalue > 0.01
    assert (p <= 0.05).mean() <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / len(p))


@pytest.mark.slow
@pytest.mark.parametrize("honest", [True, False])
def test_captioned__why_the_captioned_examples_take_no_part_in_the_test(honest):
    """A candidate that fits the captioned examples best has small p-values if they take part."""
    p = []
    for seed in range(100):
        world = World(seed, n=60)
        failed, correct = sample_to_caption(members_of(world.grades)[0].by_id(), seed=seed)
        means = [world.x[[world.row[i] for i in ids], :DIM].mean(0) for ids in (failed, correct)]
        best = f"a photo of a cat, {WORDS[int((means[0] - means[1]).abs().argmax())]}"
        vectors = Words().encode_texts([best, "a photo of a cat"])
        chosen_from = np.array([*failed, *correct]) if honest else None
        candidates = ClassCaptions((best,), vectors[:1], vectors[1], "a photo of a cat", chosen_from=chosen_from)
        p.append(world.entry(lambda k, candidates=candidates: candidates)[0].caption_p_value)
    small = float(np.mean(np.array(p) <= 0.05))
    assert small <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / len(p)) if honest else small > 0.25


def test_sample__half_is_left_to_the_test():
    for n, rate in ((40, 0.5), (1000, 0.3)):
        world = World(n=n, rate=rate)
        subset = members_of(world.grades)[0].by_id()
        failed, correct = sample_to_caption(subset)
        assert len(set(failed)) == len(failed) == min(MOST_IMAGES, -(-subset.failed.sum() // 2))
        assert len(correct) <= min(MOST_IMAGES, -(-(~subset.failed).sum() // 2))
        of = dict(zip(subset.ids.tolist(), subset.failed.tolist(), strict=True))
        assert all(of[i] for i in failed)
        assert not any(of[i] for i in correct)
        assert sample_to_caption(subset, seed=1) != (failed, correct)


def test_sample__whole_sources_leave_the_test():
    groups = np.arange(200) // 5
    world = World(n=200, groups=groups)
    source = world.source()
    candidates = source(0)
    subset: ClassSubset = members_of(world.grades)[0].by_id()
    left = candidates.taking_part(subset.ids, subset.sources)
    chosen = set(subset.sources[np.isin(subset.ids, candidates.chosen_from)].tolist())
    assert chosen
    assert not chosen & set(subset.sources[left].tolist())
    assert left.sum() >= 100
    failed, correct = sample_to_caption(subset)
    for ids in (failed, correct):  # one of each source
        assert len(set(subset.sources[np.isin(subset.ids, ids)].tolist())) == len(ids)


def test_captioned__each_image_once_a_run():
    world, described = World(), {}
    world.source(described=described)(0)
    first = list(world.described)
    assert sorted(described) == sorted(first)
    assert len(first) == len(set(first))
    world.source(described=described)(0)
    assert world.described == first


def test_captioned__a_deadline_leaves_the_first_batch():
    world = World()
    candidates = world.source(deadline=Deadline.after(-1))(0)
    assert len(world.described) == 16
    assert sorted(candidates.chosen_from.tolist()) == sorted(world.described)
    failed = world.grades.failed[torch.isin(world.ids, torch.tensor(world.described))]
    assert int(failed.sum()) == 8  # both kinds


def test_captioned__an_absence_has_no_class_in_its_captions():
    world = World(axis=7)
    grades = Grades(**{**vars(world.grades), "class_names": ("no cat", "cat")})
    source = captioned_source(Words(), world.captioner, grades, world.images)
    candidates = source(0)
    assert candidates.reference_text == "a photo"
    assert f"a photo, {WORDS[7]}" in candidates.texts


def test_captioned__words_that_all_images_share_are_no_candidates():
    assert World().source(lambda images: ["a cat on grass"] * len(images))(0) is None


@pytest.mark.parametrize(
    ("captioner", "said"),
    [
        (lambda images: ["a cat"], "returned 1 texts for 16 images"),
        (lambda images: [1] * len(images), "one of them is int"),
        (lambda images: [""] * len(images), "texts of the captioner are empty"),
        (lambda images: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_captioned__an_error_costs_captions_only(captioner, said):
    world = World(axis=7)
    entry, report = world.entry(world.source(captioner))
    assert entry.pattern
    assert entry.hardest_captions == ()
    (note,) = [note for note in report.notes if "captions for class" in note]
    assert said in note
    with pytest.raises((DataError, ZeroDivisionError)):
        world.entry(world.source(captioner), raise_class_errors=True)


def test_captioned__some_empty_texts_cost_nothing():
    world = World(axis=7)

    def sometimes(images):
        return [text if i % 3 else "" for i, text in enumerate(world.captioner(images))]

    entry, report = world.entry(world.source(sometimes))
    assert entry.hardest_captions[0] == f"a photo of a cat, {WORDS[7]}"
    assert report.notes == ()
