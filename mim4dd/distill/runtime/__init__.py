"""Processes, threads, ranks, memory and what they cost."""
