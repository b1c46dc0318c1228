"""Files that are whole or not there, and none that runs code when it is read."""
