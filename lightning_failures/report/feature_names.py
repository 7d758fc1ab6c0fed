"""User-given names of features: a small YAML file that people edit.

The file is a list, so that entries can be appended without touching anything that users wrote::

    - encoder: "fec0..."      # fingerprint of the robust encoder: another encoder's feature 17 is another feature
      feature: 17
      name: red stroke
      tag: spurious           # or overemphasised
      action: collect threes in other tints

In Singla et al. (Barlow, CVPR 2021) people name features as well, from their visualisations.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.text import clean
from lightning_failures.data.report import FeatureReport
from lightning_failures.errors import ConfigurationError, did_you_mean

FEATURES_FILE = "features.yaml"
TAGS = ("spurious", "overemphasised")
MAX_BYTES = 256 * 1024
MAX_NAME = 60
MAX_ACTION = 500
_KEYS = ("encoder", "feature", "name", "tag", "action")
_HEAD = """\
# Names of features. Look at the pictures of a feature in the report and describe it here for the next report.
#   name:   a few words, shown wherever a rule mentions the feature
#   tag:    spurious (unrelated to the class) or overemphasised (related, but the model relies on it too much)
#   action: what to do about it
# New entries are appended at the end. Existing entries are never changed.
"""


@dataclass(frozen=True)
class FeatureName:
    """The annotations of one feature, each in one line; None if left empty."""

    name: str | None = None
    tag: str | None = None
    action: str | None = None


@dataclass(frozen=True)
class FeatureNames:
    """The annotations of the features of one encoder, by feature.

    >>> names = FeatureNames({17: FeatureName("red stroke")})
    >>> names.name_of(17), names.name_of(3), names.of(3)
    ('red stroke', None, FeatureName(name=None, tag=None, action=None))
    """

    entries: Mapping[int, FeatureName] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path, *, encoder: str) -> FeatureNames:
        """Read the entries of one encoder; without a file there are none.

        Args:
            path: The YAML file.
            encoder: Fingerprint of the robust encoder.

        Raises:
            ConfigurationError: The file cannot be read, is too large, is not YAML, or has another structure.
        """
        entries = _read(Path(path))
        return cls({feature: name for (owner, feature), name in entries.items() if owner == encoder})

    def of(self, feature: int) -> FeatureName:
        """Return the annotations of a feature."""
        return self.entries.get(feature, FeatureName())

    def name_of(self, feature: int) -> str | None:
        """Return the name of a feature, or None."""
        return self.of(feature).name

    @property
    def names(self) -> dict[int, str]:
        """The names by feature, without unnamed features."""
        return {number: entry.name for number, entry in self.entries.items() if entry.name is not None}


def names_in(features: Iterable[FeatureReport]) -> dict[int, str]:
    """Return the names in a report, by feature.

    >>> names_in([FeatureReport(17, name="red stroke"), FeatureReport(3)])
    {17: 'red stroke'}
    """
    return {feature.feature: feature.name for feature in features if feature.name}


def with_names(text: str, names: Mapping[int, str]) -> str:
    """Insert the name after each feature that a rule mentions.

    >>> with_names("feature 17 <= 0.36 and feature 3 > 1", {17: "red stroke"})
    'feature 17 "red stroke" <= 0.36 and feature 3 > 1'
    """

    def named(match: re.Match[str]) -> str:
        name = names.get(int(match[1]))
        return match[0] if name is None else f'{match[0]} "{name}"'

    return re.sub(r"\bfeature (\d+)\b", named, text)


def add_to_template(
    path: str | Path, features: Iterable[FeatureReport], *, encoder: str, remarks: Mapping[int, str] | None = None
) -> bool:
    """Append an empty entry, with a comment on the feature, for each feature that the file does not list.

    The existing content is kept byte for byte; the file is replaced atomically.

    Args:
        path: The YAML file; it is created if it does not exist.
        features: The features of a report.
        encoder: Fingerprint of the robust encoder, or of the model for its own penultimate features.
        remarks: What the comment says of a feature, by feature; by default which groups it splits.

    Returns:
        Whether all features are listed now. False if nothing can be appended: the content is not a list in block style,
        or the file would get too large.

    Raises:
        ConfigurationError: The file cannot be read, see :meth:`FeatureNames.load`.
        OSError: The file cannot be written.
    """
    path = Path(path).expanduser()
    known = _read(path)
    missing = [feature for feature in features if (encoder, feature.feature) not in known]
    if not missing:
        return True
    text = _text(path)
    text = text if not text or text.endswith("\n") else text + "\n"
    extended = (text or _HEAD) + "".join(
        _entry(feature, encoder, (remarks or {}).get(feature.feature)) for feature in missing
    )
    try:
        complete = _parse(extended, str(path)) == known | {(encoder, one.feature): FeatureName() for one in missing}
    except ConfigurationError:
        return False
    if not complete or len(extended.encode()) > MAX_BYTES:
        return False
    write_atomically(path, extended.encode())
    return True


def _entry(feature: FeatureReport, encoder: str, remark: str | None = None) -> str:
    """Return an empty entry; its comment has no line break, so nothing in it can be read as YAML."""
    looks = f'looks like "{clean(feature.caption, 120)}" (hypothesis); ' if feature.caption else ""
    where = f"splits {clean(', '.join(feature.groups), 200)}" if feature.groups else clean(remark or "", 200)
    return (
        f"\n# {looks}{where}\n"
        f'- encoder: "{encoder}"\n  feature: {feature.feature}\n  name:\n  tag:  # {" or ".join(TAGS)}\n  action:\n'
    )


_Entries = dict[tuple[str, int], FeatureName]


class _Loader(yaml.SafeLoader):
    """Rejects aliases: a few nested ones can expand to more than any memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported here; write the value out")
        return super().compose_node(parent, index)


def _read(path: Path) -> _Entries:
    text = _text(path)
    return _parse(text, str(path)) if text else {}


def _text(path: Path) -> str:
    """Return the content of the file; empty if it does not exist."""
    try:
        with path.expanduser().open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigurationError(f"{path} is larger than {MAX_BYTES} bytes; shorten names and actions.")
        return content.decode("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read as text ({error}). Move it away to start over.") from error


def _parse(text: str, where: str) -> _Entries:
    try:
        data = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except Exception as error:  # PyYAML raises other errors too: invalid dates, lists nested too deep
        raise ConfigurationError(
            f"{where} is not YAML: {str(error)[:300]}. Quote texts with colons or special characters."
        ) from error
    if data is None:
        return {}
    if not isinstance(data, list):
        raise ConfigurationError(f"{where} must be a list of entries, each with '- encoder:', got {_kind(data)}.")
    entries: _Entries = {}
    for number, entry in enumerate(data, start=1):
        key, name = _parse_entry(entry, f"{where}, entry {number}")
        if key in entries:
            raise ConfigurationError(f"{where} has two entries for feature {key[1]} of the same encoder; keep one.")
        entries[key] = name
    return entries


def _parse_entry(entry: Any, where: str) -> tuple[tuple[str, int], FeatureName]:
    if not isinstance(entry, dict):
        raise ConfigurationError(f"{where} must map {', '.join(_KEYS)} to values, got {_kind(entry)}.")
    for key in entry:
        if key not in _KEYS:
            raise ConfigurationError(
                f"{where} has the unknown key {_shown(key)!r}; allowed are {', '.join(_KEYS)}."
                + did_you_mean(_shown(key), _KEYS)
            )
    encoder, feature, tag = entry.get("encoder"), entry.get("feature"), entry.get("tag")
    if not isinstance(encoder, str) or not encoder:
        raise ConfigurationError(f"{where}: encoder must be a fingerprint in quotes, got {_kind(encoder)}.")
    if not isinstance(feature, int) or isinstance(feature, bool) or not 0 <= feature < 2**63:
        raise ConfigurationError(f"{where}: feature must be a non-negative integer, got {_shown(feature)!r}.")
    if tag is not None and tag not in TAGS:
        raise ConfigurationError(
            f"{where}: tag must be {' or '.join(TAGS)}, or empty, got {_shown(tag)!r}."
            + did_you_mean(_shown(tag), TAGS)
        )
    for key in ("name", "action"):
        if not isinstance(entry.get(key), str | None):
            raise ConfigurationError(f"{where}: {key} must be a string, got {_kind(entry[key])}. Put it in quotes.")
    return (encoder, feature), FeatureName(
        clean(entry.get("name") or "", MAX_NAME) or None, tag, clean(entry.get("action") or "", MAX_ACTION) or None
    )


def _shown(value: Any) -> str:
    """Return a value for a message, or its type if it may be large: Python prints no integer of 5000 digits."""
    if isinstance(value, int) and value.bit_length() > 64:
        return "a very large number"
    return str(value)[:80] if value is None or isinstance(value, str | int | float) else _kind(value)


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
