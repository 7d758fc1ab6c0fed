"""Import paths of version 0.1.0 before the rooms: they resolve for this version, with a ``DeprecationWarning``.

``import lightning_failures.grammar`` gives the module :mod:`lightning_failures.captions.grammar` itself, so a class is
the same whichever path it was imported by. Nothing is imported before an old path is used. To drop the old paths,
remove this file and the lines that mention it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PACKAGE = "lightning_failures."

MODULES = {
    "adapters": "trainer",
    "adapters.collector": "trainer.evaluation_pass",
    "adapters.diary_files": "report.diary_storage",
    "adapters.distributed": "trainer.ranks",
    "adapters.explaining": "trainer.epoch_end",
    "adapters.isolation": "core.rng",
    "adapters.judging": "steering.lottery",
    "adapters.lenses": "encoders.cached",
    "adapters.loaders": "trainer.index_recorder",
    "adapters.monitors": "trainer.metric_keys",
    "adapters.pool_embedding": "pools.embedder",
    "adapters.pool_source": "pools.source",
    "adapters.pool_work": "pools.job",
    "adapters.reading": "trainer.batch_reader",
    "adapters.resuming": "steering.checkpoint",
    "adapters.rollback": "steering.rollback",
    "adapters.round": "steering.round",
    "adapters.steering": "steering.controller",
    "adapters.training": "steering.training_view",
    "arrays": "core.arrays",
    "atomic": "core.atomic",
    "attacks": "encoders.feature_attack",
    "budget": "core.budget",
    "cache": "encoders.cache.store",
    "candidates": "captions.candidates",
    "cards": "analysis.class_reports",
    "comparison": "report.comparison",
    "decoding": "directions.decoding",
    "demo": "cli.demo",
    "diary": "analysis.diary",
    "digits": "bundled.digits",
    "digits.captions": "bundled.digits.captions",
    "digits.data": "bundled.digits.data",
    "digits.model": "bundled.digits.model",
    "digits.render": "bundled.digits.render",
    "digits.shortcut": "bundled.digits.shortcut",
    "embedded": "bundled.models",
    "embedded.attack": "scripts/bundled_models/attack.py",
    "embedded.digit_diffusion": "bundled.models.digit_diffusion",
    "embedded.robust_cnn": "bundled.models.robust_cnn",
    "embedded.storage": "scripts/bundled_models/storage.py",
    "embedded.train_clip": "scripts/bundled_models/train_clip.py",
    "embedded.train_diffusion": "scripts/bundled_models/train_diffusion.py",
    "embedded.train_robust": "scripts/bundled_models/train_robust.py",
    "enrichment": "analysis.enrichment",
    "examples": "data.example_table",
    "feature_names": "report.feature_names",
    "further": "directions.additional",
    "gains": "trees.information_gain",
    "gallery": "report.gallery",
    "gallery_files": "report.gallery_storage",
    "grading": "data.grading",
    "grammar": "captions.grammar",
    "group_trees": "trees.groups",
    "growing": "trees.growing",
    "heldout": "trees.cross_validation",
    "histories": "report.diary",
    "html": "report.html",
    "html.render": "report.html.render",
    "interventions.image_checks": "interventions.synthesis.image_checks",
    "interventions.ledger": "interventions.synthesis.ledger",
    "interventions.near_duplicates": "interventions.selection.near_duplicates",
    "interventions.parts": "interventions.validation_split",
    "interventions.picking": "interventions.selection.picker",
    "interventions.picks": "interventions.selection.candidates",
    "interventions.ranking": "interventions.selection.candidates",
    "interventions.suspects": "interventions.label_errors",
    "interventions.synthetic_images": "interventions.synthesis.dataset",
    "interventions.told": "report.interventions",
    "kernels": "stats.kernels",
    "matching": "directions.matching",
    "metrics": "analysis.metrics",
    "mode_changes": "report.mode_comparison",
    "nulls": "directions.null_scores",
    "phrases": "core.text",
    "plain": "core.serialization",
    "rates": "trees.error_rates",
    "records": "data.report",
    "reporting": "cli.report",
    "rows": "data.members",
    "runs": "report.run_folder",
    "screening": "stats.permutation_test",
    "shards": "encoders.cache.shard_file",
    "sharing": "data.partition",
    "sinks": "writers",
    "sinks.base": "writers.base",
    "sinks.browsing": "report.example_rows",
    "sinks.csv": "writers.csv",
    "sinks.files": "writers.files",
    "sinks.layout": "writers.layout",
    "sinks.projector": "writers.projector",
    "sinks.tensorboard": "writers.tensorboard",
    "sinks.wandb": "writers.wandb",
    "splits": "stats.folds",
    "statistics": "stats.intervals",
    "svm": "directions.svm",
    "text": "report.tables",
    "threads": "core.threads",
    "trust": "report.sentences",
    "visuals": "report.images",
    "whitening": "directions.standardize",
    "wording": "captions.assign",
}
"""Old module -> new module, or the file of the repository that the module has become."""

NAMES = {
    # modules that are rooms now: what was public in the module, but is not exported by the room
    "captions": {
        "BestCaption": "captions.scoring.BestCaption",
        "caption_that_tells": "captions.scoring.most_distinctive_caption",
        "mean_shift_scores": "captions.scoring.mean_shift_scores",
    },
    "directions": {
        "DIRECTIONS_FILE": "directions.result.DIRECTIONS_FILE",
        "LEFT_OUT": "core.budget.SKIPPED_FOR_TIME",
        "joined_directions": "directions.result.join_directions",
        "phi": "directions.standardize.standardize",
    },
    "trees": {"Split": "trees.growing.NodeSplit"},
    # modules that stayed, with other names in them
    "interventions.verdicts": {"randomised_verdict": "interventions.verdicts.randomized_verdict"},
    # modules that moved: names that did not move with them, or changed
    "adapters.lenses": {"Lens": "encoders.cached.CachedEncoder", "open_lens": "encoders.cached.open_cached_encoder"},
    "budget": {"places_in_line": "core.budget.sampling_rank"},
    "further": {"further_directions": "directions.additional.additional_directions"},
    "growing": {
        "Split": "trees.growing.NodeSplit",
        "least_leaf": "trees.growing.min_leaf_size",
        "rule": "trees.growing.rule_text",
    },
    "interventions.parts": {"ReportPart": "interventions.validation_split.HeldOutSplit"},
    "interventions.picking": {"Picker": "interventions.selection.picker.PoolSelector"},
    "matching": {
        "Likeness": "directions.matching.ModeSimilarity",
        "Look": "directions.matching.ModeSnapshot",
        "likeness": "directions.matching.mode_similarity",
        "matches": "directions.matching.match_modes",
        "sign_test": "stats.intervals.sign_test",
    },
    "nulls": {
        "add_nulls": "directions.null_scores.add_null_cv_scores",
        "null_scores": "directions.null_scores.null_cv_scores",
    },
    "plain": {
        "from_plain": "core.serialization.from_jsonable",
        "to_plain": "core.serialization.to_jsonable",
    },
    "records": {"BatchRecord": "data.grades.BatchRecord", "Grades": "data.grades.Grades"},
    "rows": {"Members": "data.members.ClassSubset", "PerRow": "data.members.RowValues"},
    "runs": {"analysis_name": "data.report.analysis_name"},
    "sharing": {
        "ALONE": "data.partition.SINGLE_PROCESS",
        "Share": "data.partition.Partition",
        "Sharing": "data.partition.Workers",
    },
    "sinks": {
        "CSVSink": "writers.CSVWriter",
        "FileSink": "writers.FileWriter",
        "Sink": "writers.Writer",
        "TensorBoardSink": "writers.TensorBoardWriter",
        "WandbSink": "writers.WandbWriter",
        "each_sink": "writers.each_writer",
        "sinks_for": "writers.writers_for",
        "write_html": "report.write_html",
    },
    "sinks.base": {"Sink": "writers.base.Writer", "each_sink": "writers.base.each_writer"},
    "sinks.csv": {"CSVSink": "writers.csv.CSVWriter"},
    "sinks.files": {"FileSink": "writers.files.FileWriter", "write_html": "report.write_html"},
    "sinks.tensorboard": {"TensorBoardSink": "writers.tensorboard.TensorBoardWriter"},
    "sinks.wandb": {"WandbSink": "writers.wandb.WandbWriter"},
    "text": {
        "clean": "core.text.clean",
        "number": "core.text.number",
        "printable": "core.text.printable",
        "shorten_caption": "core.text.shorten_caption",
        "tag_part": "core.text.tag_part",
        "with_digest": "core.text.with_digest",
    },
    "whitening": {"phi": "directions.standardize.standardize"},
    "wording": {
        "Wording": "captions.assign.CaptionScorer",
        "put_in_words": "captions.assign.caption_classes",
        "worth_words": "captions.assign.classes_to_caption",
    },
}
"""Old module -> name in it -> where the object is now."""


def install() -> None:
    """Make old module paths importable. Repeated calls change nothing."""
    if not any(isinstance(finder, _OldPaths) for finder in sys.meta_path):
        # first, or Python would find ``digits/model.py`` under its old name too and load it a second time
        sys.meta_path.insert(0, _OldPaths())


def old_names(module: str) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a module of the package that resolves the names it had in the version before.

    Args:
        module: Its ``__name__``.
    """
    names = NAMES[module.removeprefix(_PACKAGE)]

    def resolve(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        _warn(f"{module}.{name}", names[name], stacklevel=3)
        return _find(names[name])

    return resolve


class _OldPaths(MetaPathFinder, Loader):
    """Finds a module under its old path and loads the module that it has become."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for old paths only."""
        old = fullname.removeprefix(_PACKAGE)
        if old == fullname or old not in MODULES:
            return None
        if MODULES[old].endswith(".py"):
            raise ModuleNotFoundError(
                f"{fullname} is no longer part of the package. In the repository it is {MODULES[old]}.", name=fullname
            )
        return ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        """Put the new module in place of the empty one that Python has made for the old path."""
        old = module.__name__.removeprefix(_PACKAGE)
        _warn(module.__name__, MODULES[old], NAMES.get(old, {}), stacklevel=3)
        new = import_module(_PACKAGE + MODULES[old])
        for name, place in NAMES.get(old, {}).items():
            if not hasattr(new, name):
                setattr(new, name, _find(place))
        sys.modules[module.__name__] = new


def _find(place: str) -> Any:
    module, _, name = place.rpartition(".")
    return getattr(import_module(_PACKAGE + module), name)


def _warn(old: str, new: str, names: dict[str, str] | None = None, *, stacklevel: int) -> None:
    exceptions = "".join(f" {name} is {_PACKAGE}{place}." for name, place in (names or {}).items())
    warnings.warn(
        f"{old} is deprecated and goes with the next version. Use {_PACKAGE}{new}.{exceptions}",
        DeprecationWarning,
        stacklevel=stacklevel,
    )
