"""Integers that are the same on every machine: arithmetic, entropy coding, and tensors of them in a file."""
