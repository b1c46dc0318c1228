"""What is added to any base method's loss: MIM4DD."""

from mim4dd.distill.add_ons.mutual_information import MIM4DD, MIM4DDSettings

__all__ = ["MIM4DD", "MIM4DDSettings"]
