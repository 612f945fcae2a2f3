"""What the commands of `sluice` do that is more than a call: a module each."""
