"""What a distillation leaves: its directory and its synthetic set, and sets of elsewhere."""

from mim4dd.distill.runs.directory import RunDirectory
from mim4dd.distill.runs.foreign import is_set, read_set, read_sets
from mim4dd.distill.runs.provenance import Provenance
from mim4dd.distill.runs.synthetic_set import SyntheticSet

__all__ = ["Provenance", "RunDirectory", "SyntheticSet", "is_set", "read_set", "read_sets"]
