"""The networks; the only place where Flax Linen is used."""
