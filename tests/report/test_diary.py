"""The diary for readers: histories, lines for the terminal, Markdown."""

from __future__ import annotations

from dataclasses import replace

from lightning_failures.analysis.diary import Diary, advance
from lightning_failures.data.report import FailureReport, ModeReport
from lightning_failures.report.diary import diary_lines, diary_markdown, histories
from tests.helpers.planted import PlantedMode, planted_result


def kept(*sights, start: int = 0, **options) -> list[FailureReport]:
    """Reports of a run with one class, their modes entered; read back from JSON."""
    diary, reports = Diary(), []
    for epoch, seen in enumerate(sights, start):
        result = planted_result(epoch, ("nine", range(40), seen), captions=True, **options)
        diary, modes = advance(diary, result)
        reports.append(FailureReport.from_json(result.with_report(modes=modes).report.to_json()))
    return reports


RED, THICK = PlantedMode(0, range(30)), PlantedMode(1, range(20))


def test_histories__a_life():
    first, second = histories(kept(*[[RED]] * 3, [RED, THICK], *[[]] * 4, start=5))
    assert (first.name, first.class_name, first.epochs) == ("nine 1", "nine", (5, 6, 7, 8, 9, 10, 11))
    assert first.steps == (60, 70, 80, 90, 100, 110, 120)
    assert first.sizes == (30, 30, 30, 30, 0, 0, 0)
    assert first.examples == (100,) * 7
    assert first.statuses == ("new", "new", "persisting", "persisting", "missing", "missing", "cured")
    assert first.seen == (True,) * 4 + (False,) * 3
    assert (first.status, first.since, first.until, first.caption) == ("cured", 5, 8, "a photo of a hard nine 8")
    assert (second.name, second.epochs, second.status, second.until) == ("nine 2", (8, 9, 10, 11), "missing", 8)


def test_histories__what_is_still_seen_has_no_end():
    red, thick = histories(kept([RED], [RED, THICK], [THICK]))
    assert (red.until, thick.until) == (1, None)
    assert (red.status, thick.status) == ("missing", "new")


def test_histories__reports_without_epochs_are_counted():
    reports = [replace(report, epoch=None, global_step=None) for report in kept([RED], [RED])]
    (mode,) = histories(reports)
    assert (mode.epochs, mode.steps) == ((0, 1), (None, None))


def test_histories__of_nothing():
    assert histories([]) == histories(kept([], [])) == ()


def test_diary_lines__what_has_changed_comes_first():
    modes = (
        ModeReport("a 1", "a", "persisting", 0, 5, size=90, examples=100, gained=1, lost=1),
        ModeReport("b 1", "b", "cured", 0, 5, missed=3, examples=100, left=2, caption="a photo of a red b"),
        ModeReport("c 1", "c", "growing", 2, 4, size=20, examples=100, gained=9, lost=1),
        ModeReport("d 1", "d", "missing", 2, 4, missed=1, examples=100),
        ModeReport("e 1", "e", "missing", 2, 4, examples=100),
        ModeReport("f 1", "f", "of a later version", None, 1, size=3, examples=100),
    )
    report = FailureReport(600, 0.5, (), modes=modes)
    assert diary_lines(report) == [
        "c 1: growing, 20 of 100 examples (+9 -1 since last seen), first seen in epoch 2",
        "b 1: cured: not seen in 3 analyses in a row, 2 of its failures remain, first seen in epoch 0, red b",
        "d 1: missing: not seen in 1 analysis, first seen in epoch 2",
        "e 1: not judged: its class has too few failures, or was left out, first seen in epoch 2",
        "a 1: persisting, 90 of 100 examples (+1 -1 since last seen), first seen in epoch 0",
        "f 1: of a later version, 3 of 100 examples",
    ]
    assert diary_lines(report, limit=1)[1:] == ["5 more in report.json"]
    assert diary_markdown(report, limit=1).endswith("\n\n5 more modes are in report.json.")
    assert diary_lines(FailureReport(0, None, ())) == []
    assert diary_markdown(FailureReport(0, None, ())) == ""


def test_diary__shows_the_words_of_users_and_does_not_interpret_them():
    mode = ModeReport("<b>|\x1b[31m\n 1", "<b>|", "new", 0, size=3, examples=9, caption="[x](http://e.com) | `a`\n")
    report = FailureReport(9, 0.5, (), modes=(mode,))
    (line,) = diary_lines(report)
    assert line.isprintable()
    table = diary_markdown(report).splitlines()[4:]
    assert len(table) == 1
    assert table[0].count("|") == 10
    assert not [part for part in ("<b>", "[x]", "http://") if part in table[0]]
