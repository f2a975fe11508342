"""Tasks: their descriptions as vectors, finding them, and adapters for tasks and mixtures that nobody trained."""
