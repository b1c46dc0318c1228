"""What a distillation leaves: its directory and its synthetic set."""

from mim4dd.distill.runs.directory import RunDirectory
from mim4dd.distill.runs.synthetic_set import SyntheticSet

__all__ = ["RunDirectory", "SyntheticSet"]
