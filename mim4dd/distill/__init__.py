"""Dataset distillation: base methods, the MIM4DD add-on, the loop, experts, evaluation, data."""
