"""Planning: which generator, if any, makes the total of a group of adapters smallest."""
