"""The primitives that have a lowering of their own on a CPU: convolution, normalisation and pooling."""
