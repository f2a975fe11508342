"""Serving: what engines take, adapters brought into that form, and what would go wrong, told before."""
