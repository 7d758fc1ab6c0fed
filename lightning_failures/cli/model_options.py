"""The options of commands with model and data: help on one screen, and what is wrong with a command line or a config.

Lightning reads options and configs itself, after seconds of imports, and answers a wrong one with pages. What can be
known without the classes of the user is checked here before: names of options, of keys of the config and of options of
the Trainer and of FailureModes, values, files. Whatever this module cannot judge is left to Lightning.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lightning_failures.cli.commands import COMMANDS
from lightning_failures.cli.options import UsageError
from lightning_failures.cli.signatures import Method, Parameter, methods_in, package_file
from lightning_failures.errors import ConfigurationError, did_you_mean

HELP_ALL = "--help-all"

_BUILT_IN = ("fit", "validate", "test", "predict")
_GENERAL = (
    "config",
    "help",
    "print_config",
    "seed_everything",
    "trainer",
    "model",
    "data",
    "optimizer",
    "lr_scheduler",
)
_NOT_OPTIONS = ("model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders")
_CHOICES = {"Split": ("train", "validation", "test"), "PoolSplit": ("predict", "train", "validation", "test")}
_AT_LEAST = {"verdict": {"epochs": 1, "pairs": 1}, "embed": {"k": 1, "shard_size": 1, "shop": 1}}
_CHECKPOINT_WORDS = ("best", "last", "hpc")
_TYPES = {"int": "N", "int | None": "N", "bool": "true|false", "bool | None": "true|false"}
_TYPES |= {"Path": "PATH", "Path | None": "PATH", "list[Path]": "PATHS"}
_LINE = 110


def help_text(command: str) -> str:
    """Return the help of a command on one screen.

    >>> print(help_text("verdict").splitlines()[0])
    usage: lightning-failures verdict --config FILE --ckpt_path TEXT [options]
    """
    method = _method_of(command)
    positional = COMMANDS[command].positional
    required = [one for one in method.parameters if one.default is None and one.name != positional]
    usage = " ".join(f"--{one.name} {_value(one)}" for one in required)
    first = f" {positional.upper()}" if positional else ""
    rows = [("--config FILE", "LightningCLI config with model, data and trainer; configs/digits.yaml is an example")]
    rows += [(f"--{one.name} {_value(one)}", _description(one)) for one in method.parameters]
    rows += [
        ("--trainer.KEY VALUE", "replace a value of the config, as --model.KEY and --data.KEY do"),
        ("--print_config", "print the whole configuration, and stop"),
        (HELP_ALL, "all options of Trainer, model and data"),
    ]
    text = "\n\n".join(textwrap.fill(" ".join(part.split()), _LINE) for part in method.text.split("\n\n"))
    usage_line = " ".join(f"usage: lightning-failures {command}{first} --config FILE {usage} [options]".split())
    return f"{usage_line}\n\n{text}\n\noptions:\n" + "\n".join(_row(*row) for row in rows)


def check(command: str, arguments: Sequence[str]) -> None:
    """Check a command line and the configs that it names.

    Raises:
        UsageError: An option is not known, lacks its value or has a wrong one, or a required option is missing.
        ConfigurationError: A file does not exist, or a config is not YAML or has an unknown key.
    """
    try:
        method, known = _method_of(command), _known_keys()
    except (OSError, SyntaxError):  # sources that cannot be read: Lightning will judge
        return
    given = list(_given(command, arguments))
    configs = [_config(value) for name, value in given if name in ("config", "c") and value is not None]
    for name, value in given:
        _check_option(command, method, known, name, value)
    options: dict[str, Any] = {}
    for path, config in configs:
        _check_config(command, method, known, path, config)
        options |= {key: value for key, value in config.items() if value is not None}
    options |= {name: value for name, value in given if value is not None}
    if not configs and not any(name.split(".")[0] == "model" for name in options) and "print_config" not in options:
        raise UsageError(f"{command} needs a model: --config FILE, a LightningCLI config (see configs/digits.yaml)")
    for parameter in method.parameters:
        if parameter.name in options:
            _check_value(command, parameter, options[parameter.name])
        elif parameter.default is None:
            raise UsageError(f"{command} needs --{parameter.name} {_value(parameter)}: {_first_sentence(parameter)}")


# -- the command line ------------------------------------------------------------------------------------------------


def _given(command: str, arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield the options of a command line with their values; None for an option without one."""
    rest = list(arguments)
    while rest and COMMANDS[command].positional and not rest[0].startswith("-"):
        yield COMMANDS[command].positional, rest.pop(0)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-"):
            raise UsageError(f"{command} takes no argument {argument!r}; options begin with --")
        name, equals, value = argument.lstrip("-").partition("=")
        if equals:
            yield name, value
        elif rest and not (rest[0].startswith("--") or rest[0] == "-c"):
            yield name, rest.pop(0)
        else:
            yield name, None


@dataclass(frozen=True)
class _Known:
    """Names of options.

    Attributes:
        trainer: Options of the Trainer.
        failure_modes: Options of FailureModes.
    """

    trainer: frozenset[str]
    failure_modes: frozenset[str]


def _known_keys() -> _Known:
    trainer = methods_in(package_file("lightning", "pytorch/trainer/trainer.py"), "Trainer")["__init__"]
    package = Path(__file__).parents[1]
    callback = methods_in(package / "callback.py", "FailureModes")["__init__"]
    former = methods_in(package / "trainer" / "options.py", "")["merge_former_spellings"]
    return _Known(
        frozenset(one.name for one in trainer.parameters),
        frozenset(one.name for one in (*callback.parameters, *former.parameters)),
    )


def _check_option(command: str, method: Method, known: _Known, name: str, value: str | None) -> None:
    root, _, rest = name.partition(".")
    options = [one.name for one in method.parameters]
    if root not in (*_GENERAL, "c", "h", *options):
        spellings = [f"--{one}" for one in (*options, *_GENERAL)]
        raise UsageError(f"{command} has no option --{name}.{did_you_mean(f'--{name}', spellings)}")
    key = re.split(r"[.+]", rest)[0] if rest else ""
    if root == "trainer" and key and key not in known.trainer:
        raise UsageError(f"the Trainer has no option --{name}.{did_you_mean(key, known.trainer)}")
    if value is None and root in (*options, "config", "c") and name != "print_config":
        raise UsageError(f"--{name} needs a value")


# -- the config ------------------------------------------------------------------------------------------------------


def _config(value: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the content of a config; an empty one if it is not a file but YAML by itself.

    Raises:
        ConfigurationError: The file does not exist or is not YAML.
    """
    path = Path(value)
    if not path.is_file():
        if ":" in value or "{" in value:
            return value, {}
        folder = path.parent
        beside = [str(one) for one in folder.glob("*.y*ml")] if folder.is_dir() else []
        raise ConfigurationError(f"The config {value} does not exist.{did_you_mean(value, beside)}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        if isinstance(error, yaml.constructor.ConstructorError):
            return value, {}  # a tag of another loader
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ConfigurationError(f"{value}{line} is not YAML: {error.problem or error.context}.") from error
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The config {value} cannot be read: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise ConfigurationError(
            f"The config {value} must be a mapping with keys such as trainer, model and data, but it is a"
            f" {type(content).__name__}."
        )
    return value, content or {}


def _check_config(command: str, method: Method, known: _Known, path: str, config: Mapping[str, Any]) -> None:
    top = {*_GENERAL, *(one.name for one in method.parameters), *COMMANDS, *_BUILT_IN} - {"config", "help"}
    for key in config:
        if key not in top:
            _unknown(path, str(key), "", top)
    trainer = config.get("trainer")
    if not isinstance(trainer, dict):
        return
    for key in trainer:
        if str(key).rstrip("+") not in known.trainer:
            _unknown(path, f"trainer.{key}", str(key), known.trainer)
    callbacks = trainer.get("callbacks")
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        if not isinstance(callback, dict) or not str(callback.get("class_path")).endswith("FailureModes"):
            continue
        arguments = callback.get("init_args")
        for key in arguments if isinstance(arguments, dict) else ():
            if key not in known.failure_modes and str(callback["class_path"]).startswith("lightning_failures."):
                _unknown(path, f"FailureModes.{key}", str(key), known.failure_modes)


def _unknown(path: str, name: str, key: str, known: Any) -> NoReturn:
    line = _line_of(path, key or name)
    raise ConfigurationError(f"{path}{line}: there is no option {name}.{did_you_mean(key or name, known)}")


def _line_of(path: str, key: str) -> str:
    """Return the place of a key in a file, if it occurs once."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    places = [k for k, line in enumerate(lines, 1) if re.match(rf"[\s-]*{re.escape(key)}\s*:", line)]
    return f", line {places[0]}" if len(places) == 1 else ""


# -- values ----------------------------------------------------------------------------------------------------------


def _check_value(command: str, parameter: Parameter, value: Any) -> None:
    """Check the value of one option, from the command line or a config."""
    name, text = parameter.name, str(value)
    if parameter.annotation in _CHOICES:
        choices = _CHOICES[parameter.annotation]
        if text not in choices:
            raise UsageError(f"{command} --{name} must be one of {', '.join(choices)}, got {text!r}")
    if parameter.annotation in ("int", "int | None") and text not in ("null", "None"):
        least = _AT_LEAST.get(command, {}).get(name)
        if re.fullmatch(r"[+-]?\d+", text) is None:
            raise UsageError(f"{command} --{name} must be an integer, got {text[:40]!r}")
        if least is not None and int(text) < least:
            raise ConfigurationError(f"{command} --{name} must be at least {least}, got {text}.")
    if parameter.annotation in ("bool", "bool | None") and text.lower() not in ("true", "false", "yes", "no", "null"):
        raise UsageError(f"{command} --{name} must be true or false, got {text[:40]!r}")
    if name == "ckpt_path":
        _check_checkpoint(text)
    if name in ("directions", "pins") and text not in ("null", "None") and text[:1] != "[" and not Path(text).exists():
        raise ConfigurationError(f"{command} --{name}: {text} does not exist.")


def _check_checkpoint(text: str) -> None:
    """Check that a checkpoint is there.

    Raises:
        ConfigurationError: It is not; the message names others that are near.
    """
    is_word = text in ("null", "None", *_CHECKPOINT_WORDS) or text.startswith("registry") or "://" in text
    if is_word or Path(text).exists():  # a sharded checkpoint is a folder
        return
    folder = Path(text).parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    found = sorted(folder.glob("*.ckpt")) or sorted(folder.glob("*/*.ckpt"))
    there = f" There are: {', '.join(map(str, found[:4]))}." if found else f" The folder {folder} holds no *.ckpt."
    raise ConfigurationError(f"The checkpoint {text} does not exist.{there}")


# -- help ------------------------------------------------------------------------------------------------------------


def _method_of(command: str) -> Method:
    """Return the method of a command, without model and data among its parameters."""
    if command in _BUILT_IN:
        checkpoint = Parameter(
            "ckpt_path", "str | None", "None", "Checkpoint to continue from, or to load weights from."
        )
        weights = Parameter("weights_only", "bool | None", "None", "Refuse a checkpoint with more than plain values.")
        verbose = Parameter("verbose", "bool", "True", "Print the logged metrics.")
        summary = COMMANDS[command].summary
        more = () if command == "fit" else (verbose,)
        return Method((checkpoint, weights, *more), summary[:1].upper() + summary[1:] + ".")
    source = Path(__file__).with_name("lightning_commands.py")
    method = methods_in(source, "FailureTrainer")[command.replace("-", "_")]
    return Method(tuple(one for one in method.parameters if one.name not in _NOT_OPTIONS), method.text)


def _value(parameter: Parameter) -> str:
    choices = _CHOICES.get(parameter.annotation)
    return "|".join(choices) if choices else _TYPES.get(parameter.annotation, "TEXT")


def _description(parameter: Parameter) -> str:
    if parameter.default is None:
        return f"{parameter.text} Required."
    default = parameter.default.removeprefix("Path(").removesuffix(")").strip("'\"")
    unsaid = default in ("None", "False") or default.isupper()  # the latter is the name of a constant
    return parameter.text if unsaid else f"{parameter.text} Default: {default}."


def _first_sentence(parameter: Parameter) -> str:
    return parameter.text.partition(". ")[0].partition(";")[0].rstrip(".")


def _row(name: str, text: str) -> str:
    wrapped = textwrap.wrap(text, _LINE - 26) or [""]
    first = f"  {name:<22}  {wrapped[0]}" if len(name) <= 22 else f"  {name}\n{'':26}{wrapped[0]}"
    return "\n".join([first, *(f"{'':26}{line}" for line in wrapped[1:])])
