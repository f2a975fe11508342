"""Proofs: certificates measured on stored bytes, verified again, and before anything is let go."""
