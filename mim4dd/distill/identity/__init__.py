"""What a run is of: values that a file holds and a later call compares."""
