"""The record of a check: does a pinned slice still hold with another model?"""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_failures.core.text import clean, percent, percent_interval
from lightning_failures.data.records import Readable


@dataclass(frozen=True)
class PinCheck(Readable):
    """The check of one pinned slice; rates are in [0, 1], and each image counts once.

    Attributes:
        name: Name of the pin.
        class_name: Class of the slice; its key is "class".
        status: "holds"; "reopened": the slice was fixed when it was pinned, and fails again; "open": it failed more
            often than the rest of its class when it was pinned, and does so still; "not checked", for the reason in
            ``note``.
        examples: Number of images in the slice now, ``joined + new``.
        failures: Number of them that failed.
        error_rate: Share of them that failed.
        interval: 95 % interval of ``error_rate``.
        joined: Number of pinned images that were found again.
        new: Number of other images in the slice, by the direction or the rule of the pin.
        gone: Number of pinned images that were not found, or have another label now.
        relabelled: Number of those of them that have another label now.
        rest_error_rate: Share of the other images of the class that failed, now.
        level: Error rate that the slice must not exceed.
        level_of: Whose error rate that was when the slice was pinned: its own ("slice") or that of the other images of
            its class ("rest").
        p_value: p-value of the test that the slice exceeds neither ``level`` nor the other images of its class.
        adjusted_p_value: The same, corrected for the number of pins that were checked together.
        caption: Caption of the slice, if there is one.
        note: Why the slice could not be checked, with the remedy.
    """

    name: str
    class_name: str = field(metadata={"key": "class"})
    status: str
    examples: int = 0
    failures: int = 0
    error_rate: float | None = None
    interval: tuple[float, float] | None = None
    joined: int = 0
    new: int = 0
    gone: int = 0
    relabelled: int = 0
    rest_error_rate: float | None = None
    level: float | None = None
    level_of: str = "slice"
    p_value: float | None = None
    adjusted_p_value: float | None = None
    caption: str | None = None
    note: str | None = None

    @property
    def holds(self) -> bool:
        """Whether the slice was checked, and there is no evidence that it fails too often."""
        return self.status == "holds"

    @property
    def sentence(self) -> str:
        """The outcome in one sentence.

        >>> check = PinCheck("cat 1", "cat", "reopened", 40, 20, 0.5, (0.35, 0.65), 38, 2, 1, 0, 0.1, 0.125)
        >>> check.sentence
        'cat 1 has reopened: 20 of 40 images fail (50.0 %, 95 % interval 35.0 to 65.0 %), 12.5 % when it was pinned; \
of the other images of cat 10.0 % fail now.'
        """
        name = clean(self.name, 60)
        if self.status == "not checked":
            return f"{name} could not be checked: {self.note}"
        states = {"holds": "holds", "reopened": "has reopened", "open": "is open, as when it was pinned"}
        state = states.get(self.status, f"is {clean(self.status, 20)!r}")  # of a later version
        then = "when it was pinned" if self.level_of == "slice" else "of the other images when it was pinned"
        return (
            f"{name} {state}: {self.failures} of {self.examples} images fail ({percent(self.error_rate)}, 95 % interval"
            f" {percent_interval(self.interval)}), {percent(self.level)} {then}; of the other images of"
            f" {clean(self.class_name, 60)} {percent(self.rest_error_rate)} fail now."
        )
