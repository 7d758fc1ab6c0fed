"""The caption that is shown names what holds of the failures, and no more."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_failures.analysis.analyse import analyse
from lightning_failures.bundled.digits import ColouredDigits
from lightning_failures.captions.attributes import CaptionAttributes
from lightning_failures.captions.candidates import ClassCaptions, caption_source
from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.captions.readings import WordShares
from lightning_failures.captions.scoring import CaptionGain, score_captions
from lightning_failures.captions.shortest import shorten
from lightning_failures.data.grades import Grades
from lightning_failures.data.report import FailureReport
from lightning_failures.encoders import load_encoder
from tests.captions.worlds import SumOfLooks, make_world


def orange(looks):
    return np.where(looks["tint"] == "orange", 0.8, 0.1)


def thin_orange(looks):
    return np.where((looks["tint"] == "orange") & (looks["stroke"] == "thin"), 0.9, 0.1)


def best_caption(world, report, k=0):
    candidates = world.captions(k)
    return candidates.texts[
        int(score_captions(report.directions, k, candidates.embeddings, candidates.reference).argmin())
    ]


@pytest.mark.parametrize(("seed", "rate", "longer"), [(0, 0.25, False), (1, 0.25, False), (1, 0.18, True)])
def test_shortest__leaves_out_what_does_not_hold(seed, rate, longer):
    """Of real digits and with the packaged CLIP: pink threes fail, and the best caption may name other looks too."""
    encoder = load_encoder("embedded:digits")
    data = ColouredDigits("validation", size=4000, seed=0)
    rows = np.flatnonzero(np.asarray(data.labels) == 3)
    tint = np.array(data.tint)[rows]
    failed = np.random.default_rng(seed).random(len(rows)) < np.where(tint == "pink", rate, 0.05)
    labels = torch.full((len(rows),), 3)
    grades = Grades(
        ids=torch.arange(len(rows)),
        labels=labels,
        predictions=torch.where(torch.from_numpy(failed), 8, labels),
        confidence=torch.ones(len(rows)),
        class_names=tuple(data.classes),
        groups=torch.as_tensor(data.groups)[rows],
    )
    embeddings = encoder.encode_images(data.images[rows].float() / 255)
    captions = caption_source(encoder, CaptionVocabulary.load("digits"), data.classes)
    report = analyse(grades, embeddings, captions=captions, seed=seed)
    scores = score_captions(report.directions, 3, captions(3).embeddings, captions(3).reference)
    assert "pink three" in (longest := captions(3).texts[int(scores.argmin())])
    assert (len(longest) > len("a photo of a pink three")) == longer
    entry = report.classes[3]
    assert entry.hardest_captions[0] == "a photo of a pink three"
    (word,) = entry.hardest_caption_attributes
    assert word.flagged_share > 0.9
    assert word.class_share == pytest.approx((tint == "pink").mean(), abs=0.05)


def test_shortest__shows_the_evidence_for_the_word_that_holds():
    world = make_world(orange, leak=0.15)
    report = analyse(world.grades, world.embeddings, captions=world.captions, metadata=world.metadata)
    entry = report.classes[0]
    (word,) = entry.hardest_caption_attributes
    (row,) = (row for row in entry.enrichment if (row.attribute, row.value) == ("tint", "orange"))
    assert (word.value, word.attribute) == ("orange", "tint")
    assert word.flagged_share == pytest.approx(row.share_of_flagged)
    assert word.class_share == pytest.approx(row.share)
    assert word.margin > 5
    assert word.p_value == 0.001
    again = FailureReport.from_json(report.report.to_json()).classes[0]
    assert again.hardest_caption_attributes == entry.hardest_caption_attributes


def test_shortest__two_attributes_that_hold_both_stay():
    world = make_world(thin_orange, n=2400, leak=0.05, drawn={"tint": [0.5, 0.2, 0.2, 0.1]})
    report = analyse(world.grades, world.embeddings, captions=world.captions)
    entry = report.classes[0]
    assert entry.hardest_captions[0] == "a photo of a thin orange eight"
    words = {word.value: word for word in entry.hardest_caption_attributes}
    assert list(words) == ["thin", "orange"]
    for word in words.values():
        assert word.attribute is None
        assert word.p_value <= 0.05
        assert word.margin > 2
        assert word.flagged_share > word.class_share + 0.2


def test_shortest__metadata_overrule_the_encoder():
    """An encoder that takes thin for orange: the caption follows what is known."""
    world = make_world(thin_orange, n=2400, leak=0.05, drawn={"tint": [0.5, 0.2, 0.2, 0.1]})
    swapped = world.metadata | {"stroke": np.where(world.metadata["stroke"] == "thin", "thick", "thin")}
    report = analyse(world.grades, world.embeddings, captions=world.captions, metadata=swapped)
    assert report.classes[0].hardest_captions[0] == "a photo of an orange eight"


def test_shortest__the_easiest_caption_is_shortened_too():
    world = make_world(lambda looks: np.where(looks["tint"] == "cyan", 0.05, 0.6), leak=0.1)
    entry = analyse(world.grades, world.embeddings, captions=world.captions).classes[0]
    assert entry.easiest_captions[0] == "a photo of a cyan eight"
    (word,) = entry.easiest_caption_attributes
    assert word.flagged_share < word.class_share
    assert word.margin > 3


def test_shortest__without_a_pattern_only_the_noun_is_left():
    nouns, tested = 0, 0
    for seed in range(20):
        world = make_world(lambda looks: np.full(300, 0.3), n=300, seed=seed, leak=0.1)
        report = analyse(world.grades, world.embeddings, captions=world.captions, permutations=99, seed=seed)
        for k, entry in enumerate(report.classes):
            tested += 1
            if entry.hardest_captions[0] == entry.reference_caption:
                nouns += 1
                assert entry.hardest_caption_attributes == ()
                assert entry.hardest_caption_scores[0] == 0
                assert entry.hardest_captions[1] == best_caption(world, report, k)
    assert tested == 40
    assert nouns >= 33


def test_shortest__the_others_follow_in_their_order():
    world = make_world(orange, leak=0.15)
    entry = analyse(world.grades, world.embeddings, captions=world.captions, top_captions=8).classes[0]
    assert len(set(entry.hardest_captions)) == 8
    assert list(entry.hardest_caption_scores[1:]) == sorted(entry.hardest_caption_scores[1:])
    assert all(margin < entry.hardest_caption_margins[1] for margin in entry.hardest_caption_margins[2:])


def test_shortest__without_permutations_there_is_no_noise_to_compare_with():
    world = make_world(orange, leak=0.15)
    report = analyse(world.grades, world.embeddings, captions=world.captions, permutations=0)
    entry = report.classes[0]
    assert "orange" in entry.hardest_captions[0]
    assert entry.hardest_caption_attributes == ()


def test_shortest__of_a_list_only_captions_of_the_list():
    world = make_world(orange, leak=0.15)
    texts = ("an orange eight on a gray background", "a thin orange eight on a gray background", "a cyan eight")

    def listed(*more):
        encoder = SumOfLooks(leak=0.15)
        vectors = encoder.encode_texts(["an eight", *texts, *more])
        return lambda k: ClassCaptions((*texts, *more), vectors[1:], vectors[0])

    long, short = (
        analyse(world.grades, world.embeddings, captions=captions).classes[0]
        for captions in (listed(), listed("an orange eight"))
    )
    assert "orange" in long.hardest_captions[0]
    assert long.hardest_captions[0] in texts
    assert short.hardest_captions[0] == "an orange eight"
    assert long.hardest_caption_attributes == short.hardest_caption_attributes == ()


def test_shortest__of_the_conditions_of_a_multilabel_task():
    """Each condition is a class of its own, with rows of the same images."""
    world = make_world(orange, leak=0.1)
    eights = np.flatnonzero(world.grades.labels == 0)
    n = len(eights)
    rng = np.random.default_rng(0)
    failed = np.stack([world.grades.failed[eights].numpy(), rng.random(n) < 0.3], axis=1).reshape(-1)
    labels = torch.tensor([0, 1]).repeat(n)
    grades = Grades(
        ids=torch.arange(n).repeat_interleave(2),
        labels=labels,
        predictions=torch.where(torch.from_numpy(failed), 1 - labels, labels),
        confidence=torch.ones(2 * n),
        class_names=("eight", "no even digit"),
    )
    metadata = {name: values[eights] for name, values in world.metadata.items()}
    report = analyse(grades, world.embeddings[eights], captions=world.captions, metadata=metadata)
    first, second = report.classes
    assert first.hardest_captions[0] == "a photo of an orange eight"
    assert first.hardest_caption_attributes[0].attribute == "tint"
    assert not second.pattern


def test_shorten__by_hand():
    """Support orders the attributes, contradicted ones are left out, and the first within noise is shown."""
    grammar = CaptionVocabulary(
        adjectives=("thin", "red", "thin red", "thick"), prepositions=("on grass", "on snow")
    ).grammar("cat")
    parts = grammar.parts()
    texts = tuple(parts)
    candidates = ClassCaptions(texts, torch.zeros(0), torch.zeros(0), grammar.reference, parts=parts)
    attributes = CaptionAttributes.of(candidates)
    best = texts.index("a photo of a thin red cat on grass")
    scores = -torch.arange(len(texts)).float()

    def shown(shares, within_noise, **options):
        shortening = shorten(best, scores, candidates, attributes, shares, **options)
        gains = {one: CaptionGain(1.0, 0.5 if one.shorter in within_noise else 0.01) for one in shortening.comparisons}
        index, evidence = shortening.choose(gains)
        return grammar.reference if index is None else texts[index], [word.value for word in evidence]

    raised, equal = WordShares(0.8, 0.5), WordShares(0.5, 0.5)
    most = WordShares(0.9, 0.5)
    shares = {"red": most, "thin": raised, "on grass": WordShares(0.6, 0.5)}
    red, thin_red = (texts.index(f"a photo of a {words} cat") for words in ("red", "thin red"))
    assert shown(shares, {None, red, thin_red}) == ("a photo of a cat", [])
    assert shown(shares, {red, thin_red}) == ("a photo of a red cat", ["red"])
    assert shown(shares, {thin_red}) == ("a photo of a thin red cat", ["thin", "red"])
    assert shown(shares, set()) == (texts[best], ["thin", "red", "on grass"])
    # contradicted: even where the best caption is beyond noise
    assert shown(shares | {"on grass": equal}, set()) == ("a photo of a thin red cat", ["thin", "red"])
    assert shown(dict.fromkeys(shares, equal), set()) == ("a photo of a cat", [])
    # for the easiest caption the other way round
    assert shown(dict.fromkeys(shares, raised), set(), sign=-1) == ("a photo of a cat", [])
    # nothing is known: the score decides the order
    assert shown({}, set())[0] == texts[best]
    # the vocabulary has no "thick red"
    best = texts.index("a photo of a red cat on snow")
    assert shown({"red": raised}, {red}) == ("a photo of a red cat", ["red"])


def test_shortest__does_not_depend_on_the_order_of_the_rows():
    world = make_world(orange, leak=0.15)
    order = torch.randperm(len(world.grades), generator=torch.Generator().manual_seed(1))
    fields = {name: getattr(world.grades, name)[order] for name in ("ids", "labels", "predictions", "confidence")}
    metadata = {name: values[order.numpy()] for name, values in world.metadata.items()}
    first, second = (
        analyse(grades, x, captions=world.captions, metadata=known, permutations=99).classes[0]
        for grades, x, known in (
            (world.grades, world.embeddings, world.metadata),
            (replace(world.grades, **fields), world.embeddings[order], metadata),
        )
    )
    assert first.hardest_captions == second.hardest_captions
    assert first.hardest_caption_attributes == second.hardest_caption_attributes
