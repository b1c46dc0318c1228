"""What Python programs use: `mim4dd.distill` shows it, and imports this when it is asked for."""
