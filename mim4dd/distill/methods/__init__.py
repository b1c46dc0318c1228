"""Base methods of dataset distillation, each one object."""
