"""The stages of `make gpu`: processes of their own, which append what they find to one file."""
