"""Configurations of whole commands, and the defaults that were published."""
