"""The loop around any method: steps, checkpoints, continuing."""

from mim4dd.distill.loop.loop import Moment, distill
from mim4dd.distill.loop.settings import LoopSettings
from mim4dd.distill.runtime.interruption import Interrupted

__all__ = ["Interrupted", "LoopSettings", "Moment", "distill"]
