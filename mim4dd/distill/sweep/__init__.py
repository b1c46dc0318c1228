"""Sensitivity studies: many distillations that differ in a few options."""
