"""Drafters: what proposes the tokens that the model then verifies. One file per drafter."""

from lineahead.runtime.drafters.base import Drafter, DraftRow, StepDrafter
from lineahead.runtime.drafters.lookup import LookupDrafter
from lineahead.runtime.drafters.nothing import NoDrafter

__all__ = ["DraftRow", "Drafter", "LookupDrafter", "NoDrafter", "StepDrafter"]
