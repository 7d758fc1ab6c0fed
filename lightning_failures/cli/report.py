"""Commands ``report`` and ``diff``, which read the files of runs: text for a terminal, HTML and JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

from lightning_failures.cli.options import diff_options, report_options
from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.text import clean, number, p_text, percent, points, printable, shorten_caption
from lightning_failures.data.report import FailureReport
from lightning_failures.errors import ConfigurationError
from lightning_failures.report.comparison import ClassChange, Comparison, ExampleChange, Side, compare
from lightning_failures.report.confusions import confusion_lines
from lightning_failures.report.diary import diary_lines
from lightning_failures.report.feature_names import names_in, with_names
from lightning_failures.report.findings import findings_lines
from lightning_failures.report.html.write import write_html
from lightning_failures.report.interventions import intervention_lines
from lightning_failures.report.mode_comparison import ModeChange
from lightning_failures.report.pins import pin_lines
from lightning_failures.report.run_folder import HTML_FILE, Run, open_epoch, open_run
from lightning_failures.report.sentences import leaf_rates
from lightning_failures.report.shared import shared_lines
from lightning_failures.report.slices import slice_lines
from lightning_failures.report.sparse import sparse_lines
from lightning_failures.report.tables import class_table, diagnosis_lines, enrichment_lines, grouping_lines, trust_lines
from lightning_failures.report.transfer import transfer, transfer_text

_TRUSTED = 5
_MODES = 20
_RULES = 20
_CLASSES = 40
_TRANSFERRED = 10
_FATES = ("new", "gone", "unknown", "persistent")


def report(arguments: Sequence[str]) -> None:
    """Run ``lightning-failures report``."""
    options = report_options(arguments)
    run = open_run(options.run, feature_names=options.feature_names)
    print(report_text(run))
    if options.text_only:
        return
    try:
        path = write_html(run, options.output)
        copy = Path(options.run) / HTML_FILE  # the demo keeps a copy in the folder above the run
        if options.output is None and copy.is_file() and not copy.samefile(path):
            path = write_html(run, copy)
    except OSError as error:
        raise ConfigurationError(f"Could not write the page ({error}). Give another place: --output FILE.") from error
    print(f"\nReport: {printable(str(path))}")


def diff(arguments: Sequence[str]) -> None:
    """Run ``lightning-failures diff``."""
    options = diff_options(arguments)
    if options.epochs is None:
        runs = [open_run(options.run_a), open_run(options.run_b)]
    else:
        runs = [open_epoch(options.run_a, epoch) for epoch in options.epochs]
    found, moved = compare(*runs, join=options.join), transfer(*runs, join=options.join)
    text = json.dumps(found.to_dict() | {"transfer": moved.to_dict()}, indent=2, allow_nan=False) + "\n"
    if options.json == "-":
        print(text, end="")
        return
    print(diff_text(found, ids=options.ids))
    if any(one.pattern for one in moved.classes):
        print(f"\n{transfer_text(moved, limit=_TRANSFERRED)}")
    if options.json is not None:
        try:
            write_atomically(Path(options.json), text.encode())
        except OSError as error:
            raise ConfigurationError(f"Could not write {options.json}: {error}") from error
        print(f"\nJSON: {printable(options.json)}")


def report_text(run: Run) -> str:
    """Return the last report of a run as text for a terminal."""
    last = run.report
    head = (
        f"{printable(str(run.folder))}: epoch {last.epoch}, step {last.global_step}, {last.examples} examples, "
        f"accuracy {percent(last.accuracy)}"
    )
    sections = [
        ("Findings", findings_lines(last, str(run.folder.parent))),
        ("Notes", [clean(note, 400) for note in (*last.notes, *run.notes)]),
        ("Confidence in the findings, most to gain first", trust_lines(last, limit=_TRUSTED)),
        ("Pinned slices", pin_lines(last.pins)),
        ("Kinds of failure and remedies", diagnosis_lines(last, limit=_TRUSTED)),
        ("Pattern shared by classes", shared_lines(last)),
        ("Failure diary", diary_lines(last, limit=_MODES)),
        ("Most frequent confusions", confusion_lines(last)),
        ("Slices that fail more often than the others", slice_lines(last)),
        ("Sparse decision layer", sparse_lines(last)),
        ("Attributes over-represented among the flagged examples", enrichment_lines(last)),
        ("Interventions", intervention_lines(last)),
        ("Failure trees by kind of group", grouping_lines(last)),
        ("Valid leaves of the failure trees", _rules(last)),
    ]
    findings, *others = _section_texts(sections)
    return "\n\n".join([head, findings, class_table(last), *others])


def diff_text(found: Comparison, *, ids: int = 0) -> str:
    """Return the comparison of two runs as text for a terminal.

    Args:
        found: The comparison.
        ids: Number of fixed, of new and of persistent failures to list.
    """
    lines = [_side("a", found.a), _side("b", found.b), ""]
    lines.append(
        f"{found.examples} examples are in both runs with the same label; {found.only_a} only in a, {found.only_b} only"
        f" in b, {found.relabelled} with another label."
    )
    for side, names in (("a", found.classes_only_a), ("b", found.classes_only_b)):
        if names:
            lines.append(f"Classes only in {side}: {clean(', '.join(map(clean, names)), 400)}.")
    lines.append(_overall(found))
    parts = ["\n".join(lines)]
    if table := _class_changes(found.classes):
        parts.append(table)
    modes = [_mode(mode) for mode in sorted(found.modes, key=lambda mode: _FATES.index(mode.fate))]
    more = [f"{len(modes) - _CLASSES} more are in the JSON form"] if len(modes) > _CLASSES else []
    how = "cosine of the directions, share of their members in both"
    sections = [(f"Failure modes ({how})", [*modes[:_CLASSES], *more])]
    for title, changes in (("Fixed", found.fixed), ("New", found.new), ("Persistent", found.persistent)):
        sections.append((f"{title} failures", _examples(changes, ids)))
    sections.append(("Notes", [clean(note, 400) for note in found.notes]))
    return "\n\n".join([*parts, *_section_texts(sections)])


def _rules(last: FailureReport) -> list[str]:
    """Return a line for each valid leaf of the trees that found a pattern, those first that it pays most to fix.

    Validity is that on held-out examples; in reports of former versions, which lack it, validity in sample.
    """
    names = names_in(last.features)
    found = [(leaf, group) for group in last.groups if group.pattern for leaf in group.leaves if leaf.shown_as_valid]
    found.sort(key=lambda pair: pair[0].rank)
    lines = [
        f"{clean(group.class_name)} ({clean(group.grouping)} group): {clean(with_names(leaf.rule, names))}:"
        f" {leaf_rates(leaf)}; base error rate {percent(group.base_error_rate)}"
        for leaf, group in found[:_RULES]
    ]
    return lines + ([f"{len(found) - _RULES} more in report.json"] if len(found) > _RULES else [])


def _section_texts(sections: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Return the text of each section that has lines, with its title above."""
    wrapper = textwrap.TextWrapper(110, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    return ["\n".join([f"{title}:", *(wrapper.fill(line) for line in lines)]) for title, lines in sections if lines]


def _side(name: str, side: Side) -> str:
    return (
        f"{name}: {printable(side.folder)}: epoch {side.epoch}, step {side.global_step}, {side.examples} examples,"
        f" accuracy {percent(side.accuracy)}"
    )


def _overall(found: Comparison) -> str:
    change = found.overall
    verdict = "" if change.different else ", no significant difference"
    agreement = f"agreement of their failures (Cohen's kappa) {number(found.agreement)}."
    if found.same_predictions is not None:
        agreement = f"Both predict the same class for {percent(found.same_predictions)} of the examples; {agreement}"
    return (
        f"Error rate {percent(change.error_rate_a)} -> {percent(change.error_rate_b)}"
        f" ({points(change.change)}, {p_text(change.p_value)}{verdict}):"
        f" {change.fixed} fixed, {change.new} new, {change.persistent} persistent failures.\n"
        f"{agreement[0].upper()}{agreement[1:]}"
    )


def _class_changes(classes: Sequence[ClassChange]) -> str:
    """Return an aligned table of the classes: significant differences first, then by the size of the change."""
    ranked = sorted(classes, key=lambda entry: (not entry.different, -abs(entry.change or 0.0)))
    head = ("class", "examples", "error a", "error b", "change", "fixed", "new", "persistent", "p-value")
    rows = [
        (
            clean(entry.name, 24),
            str(entry.examples),
            percent(entry.error_rate_a),
            percent(entry.error_rate_b),
            points(entry.change),
            str(entry.fixed),
            str(entry.new),
            str(entry.persistent),
            p_text(entry.p_value, "") if entry.different else "no difference",
        )
        for entry in ranked[:_CLASSES]
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in (head, *rows)
    ]
    more = len(ranked) - len(rows)
    return "\n".join(lines + ([f"{more} classes with smaller changes are in the JSON form."] if more else []))


def _mode(mode: ModeChange) -> str:
    sizes = [size for size in (mode.size_a, mode.size_b) if size is not None]
    caption = mode.caption_b or mode.caption_a
    how = {
        "directions": f"cosine {number(mode.cosine)}, shared {percent(mode.shared)}",
        "members": f"shared {percent(mode.shared)}",
        None: mode.why or "no way to match it with a mode of the other run",
    }[mode.matched_by]
    return f"{mode.fate}  {clean(mode.class_name)}: {' -> '.join(map(str, sizes))} flagged failures ({clean(how)})" + (
        f', "{shorten_caption(caption)}"' if caption else ""
    )


def _examples(changes: Sequence[ExampleChange], limit: int) -> list[str]:
    shown = [f"{one.id}: {clean(one.label)}, a says {clean(one.a)}, b says {clean(one.b)}" for one in changes[:limit]]
    more = len(changes) - len(shown)
    return shown + ([f"and {more} more"] if shown and more else [])
