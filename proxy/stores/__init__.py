"""Floor 1: state that outlives an exchange, shared by workers and replicas."""
