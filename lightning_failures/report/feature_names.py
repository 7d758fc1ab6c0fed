"""What people call the features that rules mention: a small YAML file that they edit, kept from report to report.

The file is a list, so that an entry can be added at its end and nothing that somebody wrote is ever touched::

    - encoder: "fec0..."      # fingerprint of the robust encoder: another encoder's feature 17 is another feature
      feature: 17
      name: red stroke
      tag: spurious           # or overemphasised
      action: collect threes in other tints

In Singla et al. (Barlow, CVPR 2021) too it is people who look at the pictures of a feature and say what it means.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.text import clean
from lightning_failures.data.report import FeatureReport, NodeReport
from lightning_failures.errors import ConfigurationError, did_you_mean
from lightning_failures.trees.growing import NodeSplit, rule_text

FEATURES_FILE = "features.yaml"
TAGS = ("spurious", "overemphasised")
MAX_BYTES = 256 * 1024
MAX_NAME = 60
MAX_ACTION = 500
_KEYS = ("encoder", "feature", "name", "tag", "action")
_HEAD = """\
# Names for features. Look at their pictures in the report, then fill in what you see; the next report uses it.
#   name:   a few words, shown wherever a rule mentions the feature
#   tag:    spurious (has nothing to do with the class) or overemphasised (has, but too much depends on it)
#   action: what to do about it
# Entries are only ever added, at the end. Yours are never changed.
"""


@dataclass(frozen=True)
class FeatureName:
    """What somebody wrote down about a feature, each in one line; what is left open is None."""

    name: str | None = None
    tag: str | None = None
    action: str | None = None


@dataclass(frozen=True)
class FeatureNames:
    """What is known of the features of one encoder.

    >>> names = FeatureNames({17: FeatureName("red stroke")})
    >>> names.name_of(17), names.name_of(3), names.of(3)
    ('red stroke', None, FeatureName(name=None, tag=None, action=None))
    """

    entries: Mapping[int, FeatureName] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path, *, encoder: str) -> FeatureNames:
        """Read the entries of one encoder. Where there is no file nothing has a name.

        Args:
            path: The YAML file.
            encoder: Fingerprint of the robust encoder.

        Raises:
            ConfigurationError: The file cannot be read, is too large, is not YAML, or has another form; the message
                says where, what is allowed and what came.
        """
        return cls({number: name for (whose, number), name in _read(Path(path)).items() if whose == encoder})

    def of(self, feature: int) -> FeatureName:
        """All that is known of a feature."""
        return self.entries.get(feature, FeatureName())

    def name_of(self, feature: int) -> str | None:
        """What it is called, or None."""
        return self.of(feature).name

    @property
    def names(self) -> dict[int, str]:
        """Of those that have one."""
        return {number: entry.name for number, entry in self.entries.items() if entry.name is not None}


def names_in(features: Iterable[FeatureReport]) -> dict[int, str]:
    """Return the names that a report knows: feature -> name.

    >>> names_in([FeatureReport(17, name="red stroke"), FeatureReport(3)])
    {17: 'red stroke'}
    """
    return {feature.feature: feature.name for feature in features if feature.name}


def with_names(text: str, names: Mapping[int, str]) -> str:
    """Put the name behind each feature that a rule mentions.

    >>> with_names("feature 17 <= 0.36 and feature 3 > 1", {17: "red stroke"})
    'feature 17 "red stroke" <= 0.36 and feature 3 > 1'
    """

    def named(match: re.Match[str]) -> str:
        name = names.get(int(match[1]))
        return match[0] if name is None else f'{match[0]} "{name}"'

    return re.sub(r"\bfeature (\d+)\b", named, text)


def node_condition(nodes: Sequence[NodeReport], index: int, names: Mapping[int, str] | None = None) -> str:
    """Return the condition on the way from a node's parent to it, in words; "all examples" at the root.

    Args:
        nodes: Of one tree, ``GroupReport.nodes``.
        index: Which of them.
        names: Feature -> name.

    >>> nodes = (NodeReport(9, 3, feature=17, threshold=0.357), NodeReport(5, 3, parent=0, above=False, leaf=0))
    >>> node_condition(nodes, 1, {17: "red stroke"}), node_condition(nodes, 0)
    ('feature 17 "red stroke" <= 0.357', 'all examples')
    """
    return with_names(rule_text(_path(nodes, index)[-1:]), names or {})


def node_rule(nodes: Sequence[NodeReport], index: int, names: Mapping[int, str] | None = None) -> str:
    """Return all conditions from the root to a node in words, each feature once, as the rule of a leaf is told."""
    return with_names(rule_text(_path(nodes, index)), names or {})


def add_to_template(path: str | Path, features: Iterable[FeatureReport], *, encoder: str) -> bool:
    """Add an empty entry, with what is known as a comment, for each feature that the file does not list.

    What is there stays as it is, to the byte: entries are put behind it, and the file is replaced as a whole.

    Args:
        path: The YAML file; it is made if there is none.
        features: Those that are shown.
        encoder: Fingerprint of the robust encoder.

    Returns:
        Whether all features are listed now; False where nothing can be added to what the file holds (it is not a list
        in block style, or would get too large).

    Raises:
        ConfigurationError: As :meth:`FeatureNames.load`.
        OSError: It cannot be written.
    """
    path = Path(path).expanduser()
    known = _read(path)
    lacking = [feature for feature in features if (encoder, feature.feature) not in known]
    if not lacking:
        return True
    text = _text(path)
    text = text if not text or text.endswith("\n") else text + "\n"
    grown = (text or _HEAD) + "".join(_entry(feature, encoder) for feature in lacking)
    try:
        holds = _parse(grown, str(path)) == known | {(encoder, one.feature): FeatureName() for one in lacking}
    except ConfigurationError:
        return False
    if not holds or len(grown.encode()) > MAX_BYTES:
        return False
    write_atomically(path, grown.encode())
    return True


def _entry(feature: FeatureReport, encoder: str) -> str:
    """One empty entry; a comment holds no line break, so nothing in it can become YAML."""
    looks = f'looks like "{clean(feature.caption, 120)}" (hypothesis); ' if feature.caption else ""
    where = f"splits {clean(', '.join(feature.groups), 200)}" if feature.groups else ""
    return (
        f"\n# {looks}{where}\n"
        f'- encoder: "{encoder}"\n  feature: {feature.feature}\n  name:\n  tag:  # {" or ".join(TAGS)}\n  action:\n'
    )


_Entries = dict[tuple[str, int], FeatureName]


class _Loader(yaml.SafeLoader):
    """Reads no aliases: a few of them, nested, can stand for more than any memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read here, write it out")
        return super().compose_node(parent, index)


def _read(path: Path) -> _Entries:
    text = _text(path)
    return _parse(text, str(path)) if text else {}


def _text(path: Path) -> str:
    """What the file holds; nothing where there is none."""
    try:
        with path.expanduser().open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigurationError(f"{path} is larger than {MAX_BYTES} bytes: keep names and actions short.")
        return content.decode("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read as text ({error}). Move it away to begin anew.") from error


def _parse(text: str, where: str) -> _Entries:
    try:
        data = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except Exception as error:  # PyYAML lets more out than its own: a date of no calendar, lists nested too deep
        raise ConfigurationError(
            f"{where} is not YAML: {str(error)[:300]}. Quote texts that hold a colon or begin with a sign."
        ) from error
    if data is None:
        return {}
    if not isinstance(data, list):
        raise ConfigurationError(f"{where} must be a list of entries, each with '- encoder:', got {_kind(data)}.")
    entries: _Entries = {}
    for number, entry in enumerate(data, start=1):
        key, name = _parse_entry(entry, f"{where}, entry {number}")
        if key in entries:
            raise ConfigurationError(f"{where} has two entries for feature {key[1]} of one encoder: keep one.")
        entries[key] = name
    return entries


def _parse_entry(entry: Any, where: str) -> tuple[tuple[str, int], FeatureName]:
    if not isinstance(entry, dict):
        raise ConfigurationError(f"{where} must map {', '.join(_KEYS)} to values, got {_kind(entry)}.")
    for key in entry:
        if key not in _KEYS:
            raise ConfigurationError(
                f"{where} has the unknown key {_told(key)!r}; allowed are {', '.join(_KEYS)}."
                + did_you_mean(_told(key), _KEYS)
            )
    encoder, feature, tag = entry.get("encoder"), entry.get("feature"), entry.get("tag")
    if not isinstance(encoder, str) or not encoder:
        raise ConfigurationError(f"{where}: encoder must be a fingerprint in quotes, got {_kind(encoder)}.")
    if not isinstance(feature, int) or isinstance(feature, bool) or not 0 <= feature < 2**63:
        raise ConfigurationError(f"{where}: feature must be a number from 0, got {_told(feature)!r}.")
    if tag is not None and tag not in TAGS:
        raise ConfigurationError(
            f"{where}: tag must be {' or '.join(TAGS)}, or empty, got {_told(tag)!r}." + did_you_mean(_told(tag), TAGS)
        )
    for key in ("name", "action"):
        if not isinstance(entry.get(key), str | None):
            raise ConfigurationError(f"{where}: {key} must be a text, got {_kind(entry[key])}. Put it in quotes.")
    return (encoder, feature), FeatureName(
        clean(entry.get("name") or "", MAX_NAME) or None, tag, clean(entry.get("action") or "", MAX_ACTION) or None
    )


def _path(nodes: Sequence[NodeReport], index: int) -> tuple[NodeSplit, ...]:
    """The conditions from the root to a node."""
    splits: list[NodeSplit] = []
    while (parent := nodes[index].parent) is not None and len(splits) < len(nodes):
        above = nodes[parent]
        if above.feature is not None and above.threshold is not None:
            splits.append(NodeSplit(above.feature, above.threshold, bool(nodes[index].above)))
        index = parent
    return tuple(reversed(splits))


def _told(value: Any) -> str:
    """A value in a message; of what may be large only its type: Python writes no whole number of 5000 digits."""
    if isinstance(value, int) and value.bit_length() > 64:
        return "a very large number"
    return str(value)[:80] if value is None or isinstance(value, str | int | float) else _kind(value)


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
