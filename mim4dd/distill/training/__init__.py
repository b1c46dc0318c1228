"""Networks in training: what experts, methods and evaluation share."""
