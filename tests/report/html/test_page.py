"""What is selected for the page."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from lightning_failures.data.report import ClassReport, FailureReport, ModeReport
from lightning_failures.report.gallery import Gallery
from lightning_failures.report.html import page as pages
from lightning_failures.report.html.page import build_page
from lightning_failures.report.html.render import render
from lightning_failures.report.run_folder import Run
from tests.report.html.a_run import a_run
from tests.report.test_method_comparison import run as compared_run

RUN = a_run()


def of(report, **rest):
    return Run(Path("logs/failures"), report, (report,), **rest)


def test_build_page__classes_are_ranked_and_compared_by_name():
    now = FailureReport(
        9, 0.5, tuple(ClassReport(n, 9, accuracy=a) for n, a in zip("abc", (0.9, 0.1, 0.5), strict=True))
    )
    before = FailureReport(9, 0.5, tuple(ClassReport(n, 9, accuracy=0.3) for n in "ca"))
    page = build_page(Run(Path("x/failures"), now, (before, now)))
    assert [(row.entry.name, row.index, row.before) for row in page.classes] == [
        ("b", 1, None),
        ("c", 2, 0),
        ("a", 0, 1),
    ]
    assert page.before == 0
    assert build_page(of(now)).before is None


def test_build_page__of_a_report_alone():
    page = build_page(of(FailureReport(0, None, ())))
    assert (page.classes, page.cards, page.trees, page.modes, page.features) == ((), (), (), (), ())
    assert page.examples["rows"] == []
    assert page.charts == page.class_rows == {}


def test_build_page__every_section():
    page = build_page(RUN)
    assert {row.entry.name for row in page.classes} == set(RUN.table.class_names)
    assert len(page.cards) == 4  # the fifth never fails
    assert [row.title for row in page.cards[0].pictures[0].rows] == ["hardest", "easiest", "least confident"]
    assert all(tree.group.pattern and tree.root for tree in page.trees)
    assert {g.class_name for _, g, _ in page.no_trees} == {"owl", "quilt"}
    assert all(sentence for *_, sentence in page.no_trees)
    assert all(len(seen.pictures) == 1 for seen in page.features)
    assert [outcome for outcome, _ in page.interventions] == ["helped", "not measured"]
    assert page.more == ()  # every picture has a section
    assert page.omitted == dict.fromkeys(page.omitted, 0) | {"cards": 1}


def test_build_page__tiles_know_their_row():
    page = build_page(RUN)
    card = next(card for card in page.cards if card.entry.name == "dog")
    hardest = card.pictures[0].rows[0].tiles
    assert [int(RUN.table.ids[tile.row]) for tile in hardest] == list(card.entry.hardest_ids)
    names = RUN.table.class_names
    assert [tile.predicted for tile in hardest] == [names[int(RUN.table.predictions[tile.row])] for tile in hardest]
    assert all(tile.alt.startswith("hardest: example ") and "dog, predicted" in tile.alt for tile in hardest)


def test_build_page__title_of_any_folder():
    titles = [
        build_page(dataclasses.replace(RUN, folder=Path(p))).title
        for p in ("failures", "/", "a/b/failures/dataloader_1")
    ]
    assert titles == ["a run", "a run", "b/dataloader_1"]


def test_build_page__says_what_it_leaves_out(monkeypatch):
    for name in ("CLASS_ROWS", "CARDS", "TREES", "GROUP_ROWS", "MODE_ROWS", "FEATURES", "LINES"):
        monkeypatch.setattr(pages, f"MAX_{name}", 1)
    monkeypatch.setattr(pages, "PICTURE_CHARACTERS", 4000)
    page = build_page(RUN)
    left = {"classes": 4, "cards": 4, "no_trees": 8, "groups": 9, "features": 2, "modes": 4}
    assert {name: page.omitted[name] for name in left} == left
    assert page.omitted["images"] > 0
    assert len(page.trees) == len(page.cards) == len(page.no_trees) == 1


def test_build_page__modes_that_ended_come_last():
    def mode(name, status, size):
        return ModeReport(name, "cat", status, 0, size=size)

    first = FailureReport(9, 0.5, (), modes=(mode("a", "new", 5), mode("b", "new", 90)), epoch=0)
    last = FailureReport(9, 0.5, (), modes=(mode("c", "new", 2), mode("a", "growing", 7)), epoch=1)
    rows = build_page(Run(Path("x"), last, (first, last))).modes
    assert [(row.mode.name, row.at) for row in rows] == [
        ("a", "report/modes/1"), ("c", "report/modes/0"), ("b", "history/0/modes/1"),
    ]  # fmt: skip
    assert rows[0].past == ((0, 0), (1, 1))
    assert rows[2].status == "missing"


def test_build_page__a_class_that_is_too_rare_is_not_judged():
    rows = [ModeReport("a", "cat", "missing", 0, missed=0), ModeReport("b", "cat", "missing", 0, missed=2)]
    report = FailureReport(9, 0.5, (), modes=tuple(rows), epoch=1)
    found = {row.mode.name: row.status for row in build_page(Run(Path("x"), report, (report,))).modes}
    assert found == {"a": "not judged", "b": "missing"}


def test_render__features_say_why_they_were_not_attacked():
    pictures = [dataclasses.replace(one, note="feature attack left out: out of time") for one in RUN.gallery.pictures]
    page = render(dataclasses.replace(RUN, gallery=dataclasses.replace(RUN.gallery, pictures=tuple(pictures))))
    assert page.count("feature attack left out: out of time") == 1
    assert "--pictures full" in page
    assert "--pictures full" not in render(RUN)


def test_build_page__trees_are_named_by_what_they_miss_or_call():
    titles = {tree.title for tree in build_page(RUN).trees}
    assert {"missed cat", "called cat"} <= titles


def test_build_page__a_validation_after_fit_shows_the_diary_of_the_training(monkeypatch):
    monkeypatch.setattr(pages, "CHARTS", {})  # Vega takes seconds
    modes = [(ModeReport("a", "cat", "new", 0, size=size),) for size in (5, 7)]
    history = [FailureReport(9, 0.5, (), modes=mode, epoch=e, stage="fit") for e, mode in enumerate(modes)]
    single = FailureReport(9, 0.5, (), epoch=2, stage="validate")
    run = Run(Path("x"), single, (*history, single))
    page = build_page(run)
    assert [(row.at, row.status, row.now) for row in page.modes] == [("history/1/modes/0", "new", True)]
    assert page.diary_of == 1
    page_text = " ".join(re.sub("<[^>]*>", "", render(run)).split())
    assert "The diary covers the training up to epoch 1; an analysis of stage validate is not added to it." in page_text
    alone = dataclasses.replace(run, report=history[1], history=tuple(history))
    assert build_page(alone).diary_of is None
    assert "is not added to it" not in render(alone)


def test_build_page__an_empty_gallery():
    assert build_page(dataclasses.replace(RUN, gallery=Gallery())).cards[0].pictures == ()


def test_render__held_out_first_and_what_is_in_sample_is_named_so():
    page = render(RUN)
    assert "wrong on held-out examples" in page
    assert "In sample:" in page
    assert "failure leaf" in page
    assert "failure leaf in sample" not in page


def test_render__a_report_of_a_former_version_has_its_rates_in_sample():
    unknown = {"heldout_error_rate": None, "heldout_error_coverage": None}
    groups = tuple(
        dataclasses.replace(
            group,
            leaves=tuple(dataclasses.replace(leaf, **unknown, heldout_valid=None) for leaf in group.leaves),
            nodes=tuple(dataclasses.replace(node, **unknown) for node in group.nodes),
        )
        for group in RUN.report.groups
    )
    page = render(dataclasses.replace(RUN, report=dataclasses.replace(RUN.report, groups=groups)))
    assert "wrong on held-out examples" not in page
    assert "wrong in sample" in page
    assert "failure leaf in sample" in page


def test_methods__the_table_holds_the_numbers_of_the_comparison():
    report, table = compared_run()
    tints = {"values": ["red", "blue"], "codes": [0 if i in (0, 5) else 1 for i in range(20)]}
    report.methods["baselines"] |= {
        "captions": {"domino": {"cat": "a wet cat"}},
        "attributes": {"ids": list(range(20)), "by_name": {"tint": tints}},
    }
    page = render(Run(Path("logs/failures"), report, (report,), table=table))
    section = page[page.index('<section id="methods"') :].split("</section>")[0]
    for name in ("directions", "confidence", "domino", "clusters"):
        assert f">{name}</th>" in section
    assert re.search(r"66\.7\s%", section)  # of domino: two of three cats
    assert "cat: a wet cat" in section
    assert ">tint=red</button>" in section
    assert re.search(r"33\.3\s%", section)  # red: one of three cats
    assert 'href="#methods"' in page


def test_methods__without_rankings_there_is_no_section():
    report, table = compared_run(rankings={})
    assert 'id="methods"' not in render(Run(Path("logs/failures"), report, (report,), table=table))
