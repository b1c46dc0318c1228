"""One module per op: its public function, its checks, its schema and its registrations."""
