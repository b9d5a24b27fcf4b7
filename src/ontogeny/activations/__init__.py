"""One HDF5 file a (stream, layer, snapshot): the same token positions, in the same order."""
