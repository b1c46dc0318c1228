"""Where a run's numbers can be watched while it trains: TensorBoard, Weights & Biases, or yours."""

from mim4dd.distill.loggers.logger import Logger, numbers
from mim4dd.distill.loggers.named import LOGGERS, named_loggers
from mim4dd.distill.loggers.tensorboard import TensorBoard
from mim4dd.distill.loggers.wandb import WandB

__all__ = ["LOGGERS", "Logger", "TensorBoard", "WandB", "named_loggers", "numbers"]
