"""Pure functions of tensors, without state: attention, normalization, positions, loss."""
