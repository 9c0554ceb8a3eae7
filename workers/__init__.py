"""Background work: the GPU queue's supervisor, torch-free housekeeping, and the training library that they drive."""
