"""Pages for people: what is in a registry, without a line of script."""
