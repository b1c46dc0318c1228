"""What the command line does with several runs at once."""
