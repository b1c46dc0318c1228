"""Readers of files against files that somebody, or a disk, has changed."""
