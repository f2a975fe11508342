"""The codec: between an adapter and its code file, with what a generator predicts or without."""
