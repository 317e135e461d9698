"""Reply -> what it says of each attribute; the only place that reads an answer."""

from dataclasses import dataclass

from facescan.types import Outcome


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reply says of one attribute; `label` is set exactly when `outcome` is answered."""

    outcome: Outcome
    label: str | None = None
