"""Serving: what engines take, adapters brought into that form, what would go wrong, and adapters given to engines."""
