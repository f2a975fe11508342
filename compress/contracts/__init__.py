"""Contracts: what adapters are held to, how that is measured, and how they are brought to it."""
