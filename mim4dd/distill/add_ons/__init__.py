"""What is added to any base method's loss: MIM4DD."""

from mim4dd.distill.add_ons.mutual_information import MIM4DD, MIM4DDSettings
from mim4dd.distill.add_ons.registry import ADD_ONS, AddOnSettings, add_on

__all__ = ["ADD_ONS", "MIM4DD", "AddOnSettings", "MIM4DDSettings", "add_on"]
