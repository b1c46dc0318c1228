"""Readers of the files that data sets are downloaded as, and of folders of images."""
