"""Base methods of dataset distillation, each one object: what a configuration can name."""

from collections.abc import Callable
from typing import Any, NamedTuple

from mim4dd.distill.methods.base import BaseMethod, Ingredients
from mim4dd.distill.methods.cafe import CAFE, CAFESettings
from mim4dd.distill.methods.datm import DATM, DATMSettings
from mim4dd.distill.methods.dc import DC, DCSettings
from mim4dd.distill.methods.dm import DM, DMSettings
from mim4dd.distill.methods.dsa import DSA, DSASettings
from mim4dd.distill.methods.mtt import MTT, MTTSettings
from mim4dd.distill.methods.rat_bptt import RaTBPTT, RaTBPTTSettings
from mim4dd.distill.methods.sre2l import SRe2L, SRe2LSettings
from mim4dd.distill.methods.tesla import TESLA
from mim4dd.distill.settings import Settings, option_names

__all__ = ["METHODS", "MethodKind"]


class MethodKind(NamedTuple):
    """How a method is made of a configuration."""

    title: str
    settings: type[Settings]
    make: Callable[[Ingredients, Any], BaseMethod]  # from its settings
    needs_experts: bool = False
    # Options of the loop that only some methods make use of: step sizes of what those learn.
    of_loop: frozenset[str] = frozenset()

    @property
    def options(self) -> set[str]:
        """Those that other methods may not have."""
        return option_names(self.settings) | self.of_loop


_LEARNS_STEP_SIZE = frozenset({"lr_lr", "positive_syn_lr"})

METHODS = {
    "mtt": MethodKind("MTT", MTTSettings, MTT.make, needs_experts=True, of_loop=_LEARNS_STEP_SIZE),
    "tesla": MethodKind(
        "TESLA", MTTSettings, TESLA.make, needs_experts=True, of_loop=_LEARNS_STEP_SIZE
    ),
    "datm": MethodKind(
        "DATM", DATMSettings, DATM.make, needs_experts=True, of_loop=_LEARNS_STEP_SIZE | {"lr_y"}
    ),
    "dc": MethodKind("DC", DCSettings, DC.make),
    "dsa": MethodKind("DSA", DSASettings, DSA.make),
    "cafe": MethodKind("CAFE", CAFESettings, CAFE.make),
    "dm": MethodKind("DM", DMSettings, DM.make),
    "rat_bptt": MethodKind("RaT-BPTT", RaTBPTTSettings, RaTBPTT.make),
    "sre2l": MethodKind("SRe2L", SRe2LSettings, SRe2L.make),
}
