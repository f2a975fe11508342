"""Generators: the file, its architectures (integers decode, torch trains), and how one is trained."""
