"""The options of commands without model and data, and what is wrong with them.

Nothing here imports torch, so that a mistyped option or run is answered at once.
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lightning_failures.core.run_paths import no_single_run, own_report, runs_below
from lightning_failures.errors import ConfigurationError, FailureModesError, did_you_mean

EXPORT_FORMATS = ("csv", "json", "fiftyone", "label-studio", "cleanlab")
JOINS = ("name", "id", "index")
PIN_SUFFIX = ".pin"
RECIPES = (
    "folder", "celeba", "cifar100", "cifar10", "chestxray14", "imagenet", "coloured-mnist", "imagenet-c",
    "imagenet-barlow",
)  # fmt: skip
ENCODER = "ViT-B-32/openai"
STUDY_TASKS = ("simulate", "match", "describe", "questionnaire")
"""Values that other modules own; a test compares them with theirs."""

_RUN = "its log folder, its failures/ folder, a report.json, or the folder of the demo"


class UsageError(FailureModesError):
    """A wrong command line; the exit status is 2."""

    exit_status = 2


class Parser(ArgumentParser):
    """A parser whose errors are one line, with the usage behind it."""

    def __init__(self, command: str = "", **options: Any) -> None:
        options.setdefault("prog", f"lightning-failures {command}")
        super().__init__(formatter_class=RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Raise an error that ends in one line.

        Raises:
            UsageError: Always.
        """
        if message.startswith("unrecognized arguments: "):
            known = [name for action in self._actions for name in action.option_strings]
            message += f".{did_you_mean(message.split()[2].partition('=')[0], known)}"
        raise UsageError(f"{message} ({' '.join(self.format_usage().split())})")


def demo_options(arguments: Sequence[str]) -> Namespace:
    """Return the options of ``demo``.

    Raises:
        ConfigurationError: A value is out of range.
        UsageError: The command line is wrong.
    """
    parser = Parser(
        "demo",
        description="Train a small classifier on coloured digits and show on which kinds of digits it fails.\n\n"
        "Real handwritten digits are drawn in colour. Eight of the ten classes have a usual tint, so the classifier\n"
        "learns the tint instead of the shape, and fails on digits in an unusual tint. Nothing is downloaded.",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of tints, images and weights; default: 0"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("failures-demo"),
        metavar="FOLDER",
        help="folder for the TensorBoard logs, the pictures and the report; default: failures-demo",
    )
    parser.add_argument(
        "--epochs", type=int, default=6, metavar="N", help="training epochs, each with one analysis; default: 6"
    )
    parser.add_argument(
        "--shortcut",
        type=float,
        default=0.95,
        metavar="P",
        help="probability of the usual tint in training, 0.5 (no shortcut) to 0.99; default: 0.95",
    )
    options = parser.parse_args(list(arguments))
    if options.epochs < 1:
        raise ConfigurationError(f"demo: epochs must be at least 1, got {options.epochs}.")
    if not 0.5 <= options.shortcut <= 0.99:
        raise ConfigurationError(f"demo: shortcut must be between 0.5 and 0.99, got {options.shortcut}.")
    return options


def report_options(arguments: Sequence[str]) -> Namespace:
    """Return the options of ``report``; see :func:`demo_options` for the errors."""
    parser = Parser(
        "report",
        description="Show the last report of a run, and write it as one HTML file that needs no network.\n"
        "Only the files of the run are read; neither the model nor the data is needed.",
        epilog="examples:\n  lightning-failures report failures-demo\n"
        "  lightning-failures report lightning_logs/version_3 --output ticket.html",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help=_RUN)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where to write the HTML; default: report.html next to the report"
    )
    parser.add_argument("--text-only", action="store_true", help="write no HTML")
    parser.add_argument(
        "--feature-names",
        type=Path,
        metavar="FILE",
        help="YAML file with names of features; default: features.yaml of the run. The file is read each time",
    )
    return _with_runs(parser.parse_args(list(arguments)))


def diff_options(arguments: Sequence[str]) -> Namespace:
    """Return the options of ``diff``; see :func:`demo_options` for the errors."""
    parser = Parser(
        "diff",
        description="Compare two runs, or two epochs of one run, from their files: which failures were fixed, which\n"
        "are new and which persist, which classes differ significantly, and which failure modes are gone, new or\n"
        "persistent. "
        "Examples are paired by image and label. The exit status is 0 whatever the comparison finds.",
        epilog="examples:\n  lightning-failures diff lightning_logs/version_3 lightning_logs/version_4\n"
        "  lightning-failures diff before after --ids 20\n"
        "  lightning-failures diff lightning_logs/version_3 --epochs 2 9\n"
        "  lightning-failures diff at_224px at_384px --join name\n"
        "  lightning-failures diff before after --json - | jq '.new[].id'",
    )
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help=f"the earlier run: {_RUN}")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", nargs="?", help="the later run, in the same forms")
    parser.add_argument(
        "--epochs", type=_count, nargs=2, metavar=("A", "B"), help="compare two epochs of RUN_A, counted from 0"
    )
    parser.add_argument("--ids", type=_count, default=0, metavar="N", help="name the first N of each kind of failures")
    parser.add_argument(
        "--join",
        choices=JOINS,
        help="pair examples by the name of their file, by the id that read_batch gave, or by their index in the"
        " dataset, if the two models see the same images in other preprocessing; default: by image",
    )
    parser.add_argument(
        "--json", metavar="FILE", help='write everything as JSON; "-": to standard output instead of the text'
    )
    options = parser.parse_args(list(arguments))
    if (options.run_b is None) == (options.epochs is None):
        parser.error("name either a second run, RUN_B, or two epochs of the first: --epochs A B")
    return _with_runs(options)


def pin_options(arguments: Sequence[str]) -> Namespace:
    """Return the options of ``pin``; see :func:`demo_options` for the errors."""
    parser = Parser(
        "pin",
        description="Pin a slice of a run, so that a pattern that was fixed is noticed if it comes back: its images,\n"
        "its direction or rule and its error rate, in one small file. Only the files of the run are read.\n"
        "Check the pins of a folder on the next model with: lightning-failures check-pins pins --config ...",
        epilog="examples:\n  lightning-failures pin lightning_logs/version_3 --class owl\n"
        '  lightning-failures pin lightning_logs/version_3 --class owl --mode "owl 1"\n'
        '  lightning-failures pin lightning_logs/version_3 --class owl --mode "leaf 2" --output tests/pins',
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="its log folder, its failures/ folder, or the folder of the demo"
    )
    parser.add_argument("--class", dest="class_name", required=True, metavar="NAME", help="class of the slice")
    parser.add_argument(
        "--mode",
        metavar="NAME",
        help='failure mode of the diary, such as "owl 1", also one that is cured; or "leaf 2", the second leaf of the'
        " failure tree of the class. Default: the images that the direction of the class flags",
    )
    parser.add_argument(
        "--accept",
        action="store_true",
        help="keep the slice at its present error rate, although it fails more often than the rest of its class",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("pins"),
        metavar="FOLDER",
        help=f"folder of the pins, or a file whose name ends with {PIN_SUFFIX}; default: pins",
    )
    return _with_runs(parser.parse_args(list(arguments)))


def export_options(arguments: Sequence[str]) -> Namespace:
    """Return the options of ``export``; see :func:`demo_options` for the errors."""
    parser = Parser(
        "export",
        description="Write the findings of a run for other tools: examples that failed or are flagged, labels to\n"
        "check, slices and pins. Only the files of the run are read; neither the model nor the data is needed.",
        epilog="examples:\n  lightning-failures export lightning_logs/version_3 --to csv\n"
        "  lightning-failures export lightning_logs/version_3 --to fiftyone --images data/val\n"
        "  lightning-failures export lightning_logs/version_3 --to label-studio --output review",
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="its log folder, its failures/ folder, or the folder of the demo"
    )
    parser.add_argument("--to", required=True, choices=EXPORT_FORMATS, help="the tool that reads the files")
    parser.add_argument(
        "--output", type=Path, default=Path("failures-export"), metavar="FOLDER", help="default: failures-export"
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="root folder of the evaluated dataset, to find the files of the examples; without it, the thumbnails of"
        " the run stand for them",
    )
    parser.add_argument("--pins", type=Path, nargs="+", metavar="PINS", help="files or folders of pins to add")
    parser.add_argument("--all", action="store_true", help="write all examples, not only those that are remarkable")
    return _with_runs(parser.parse_args(list(arguments)))


def study_options(arguments: Sequence[str]) -> Namespace:
    """Return the options of ``study``; see :func:`demo_options` for the errors."""
    parser = Parser(
        "study",
        description="Make a study with people from the findings of a run: one HTML file that works offline and\n"
        "downloads the answers. Score the files of answers: rates with intervals, agreement, votes, words.",
        epilog="examples:\n  lightning-failures study make lightning_logs/version_3 --task describe\n"
        "  lightning-failures study make lightning_logs/version_3 --task simulate --layer layer.safetensors \\\n"
        "    --features features.safetensors\n"
        "  lightning-failures study score answers-*.json",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="make|score")
    make = actions.add_parser("make", prog="lightning-failures study make", help="write the page of a study")
    make.add_argument("run", type=Path, metavar="RUN", help=_RUN)
    make.add_argument("--task", required=True, choices=STUDY_TASKS)
    make.add_argument("--layer", type=Path, metavar="FILE", help="SparseLayer.save(...); default: that of the report")
    make.add_argument(
        "--features",
        type=Path,
        metavar="FILE",
        help="safetensors with features (N, D), labels (N,) and ids (N,) of the evaluated examples, and for comparison"
        " dense_weight (K, D) and dense_bias (K,)",
    )
    make.add_argument("--images", type=Path, metavar="FOLDER", help="root folder of the evaluated dataset")
    make.add_argument("--count", type=_count, default=20, metavar="N", help="questions of each condition; default: 20")
    make.add_argument("--controls", type=_count, default=3, metavar="N", help="questions to tell who looks; default: 3")
    make.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    make.add_argument("--output", type=Path, metavar="FILE", help="default: study-TASK.html")
    score = actions.add_parser("score", prog="lightning-failures study score", help="print the tables of a study")
    score.add_argument("answers", type=Path, nargs="+", metavar="ANSWERS", help="files that the page downloads")
    score.add_argument("--json", metavar="FILE", help="write everything as JSON")
    score.add_argument("--run", type=Path, metavar="RUN", help="show the scores on the page of the run, too")
    return _with_runs(parser.parse_args(list(arguments)))


def reproduce_options(arguments: Sequence[str], recipes: str = "") -> Namespace:
    """Return the options of ``reproduce``; see :func:`demo_options` for the errors.

    Args:
        arguments: The command line.
        recipes: What each recipe is, for the help.
    """
    parser = Parser(
        "reproduce",
        description="Train a paper's network on your own copy of its data set, and write the published figures beside\n"
        f"what was found. Nothing is downloaded but the encoder.\n\nrecipes:\n{recipes}",
    )
    parser.add_argument("name", help="name of a recipe")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one training each (default: 0)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the data")
    parser.add_argument("--epochs", type=int, help="another number of epochs than the paper's")
    parser.add_argument("--encoder", default=ENCODER, help="as in FailureModes (default: %(default)s)")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="imagenet-barlow: the trained ResNet, as torchvision saves it"
    )
    parser.add_argument(
        "--robust-encoder", type=Path, metavar="FILE", help="imagenet-barlow: the adversarially trained ResNet"
    )
    parser.add_argument("--variant", metavar="NAME", help="another distribution of the data (default: the first one)")
    parser.add_argument(
        "--parts", nargs="*", metavar="NAME", help="only these parts beside the main run; no name: none (default: all)"
    )
    parser.add_argument("--inception", type=Path, metavar="FILE", help="celeba: weights of torchvision's Inception v3")
    parser.add_argument("--vit", type=Path, metavar="FILE", help="imagenet: weights of torchvision's ViT-B/16")
    parser.add_argument("--generator", metavar="DIR", help="cifar10: a text-to-image pipeline of diffusers")
    parser.add_argument("--decoder", metavar="DIR", help="cifar10: an unCLIP pipeline that decodes the encoder's space")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images (default: 0)")
    parser.add_argument(
        "--output", type=Path, default=Path("reproduced"), help="folder of results (default: %(default)s)"
    )
    options = parser.parse_args(list(arguments))
    if options.name not in RECIPES:
        close = did_you_mean(options.name, RECIPES)
        raise ConfigurationError(f"There is no recipe {options.name!r}.{close} Recipes: {', '.join(RECIPES)}.")
    if not options.data.is_dir():
        raise ConfigurationError(
            f"--data {options.data} is no folder. The layout that a recipe needs: lightning-failures reproduce --help"
        )
    for name in ("weights", "robust_encoder", "inception", "vit"):
        path = getattr(options, name)
        if path is not None and not path.expanduser().is_file():
            raise ConfigurationError(f"--{name.replace('_', '-')} {path} is no file.")
    for name in ("generator", "decoder"):
        text = getattr(options, name)
        if text is not None and not text.startswith("embedded:") and not Path(text).expanduser().is_dir():
            raise ConfigurationError(f"--{name} {text} is no folder with a pipeline of diffusers.")
    if options.epochs is not None and options.epochs < 1:
        raise ConfigurationError(f"--epochs must be at least 1, got {options.epochs}.")
    if len(set(options.seeds)) < len(options.seeds):
        raise ConfigurationError(f"--seeds must differ, got {options.seeds}.")
    return options


def compare_methods_options(arguments: Sequence[str]) -> Namespace:
    """Return the options of ``compare-methods``; see :func:`demo_options` for the errors."""
    parser = Parser(
        "compare-methods",
        description="Compare what failure directions, Domino, clusters, confidence, margin, the first analysis of the\n"
        "training (early stopping) and the disagreement of its analyses rank first in a run: their failures, captions\n"
        "and what they share. The run must have been made with\n"
        "FailureModes(advanced=AdvancedOptions(compare_methods=True)).",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help=_RUN)
    parser.add_argument("--top", type=int, default=10, help="number of examples of each class (default: %(default)s)")
    parser.add_argument(
        "--attributes",
        metavar="FILE",
        help="CSV file with a column 'id' and columns of known attributes: shares of their values among the hardest",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(list(arguments))
    if not 1 <= options.top <= 50:
        raise ConfigurationError(
            f"--top must be 1 ... 50, the number of examples that a ranking keeps; got {options.top}."
        )
    return _with_runs(options)


def _with_runs(options: Namespace) -> Namespace:
    """Return the options if each run that they name is there.

    Raises:
        ConfigurationError: A run is not there, or a folder has several.
    """
    for name in ("run", "run_a", "run_b"):
        path = getattr(options, name, None)
        if path is not None and own_report(path) is None and (wrong := no_single_run(path, runs_below(path))):
            raise ConfigurationError(wrong)
    for name in ("feature_names", "images", "layer", "features"):
        path = getattr(options, name, None)
        if path is not None and not path.expanduser().exists():
            raise ConfigurationError(f"--{name.replace('_', '-')}: {path} does not exist.")
    return options


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"must be an integer of at least 0, got {text[:40]!r}")
    return int(text)


OPTIONS: dict[str, Callable[[Sequence[str]], Namespace]] = {
    "demo": demo_options,
    "report": report_options,
    "diff": diff_options,
    "pin": pin_options,
    "export": export_options,
    "study": study_options,
    "reproduce": reproduce_options,
    "compare-methods": compare_methods_options,
}
"""The function that reads the options of each command without model and data."""
