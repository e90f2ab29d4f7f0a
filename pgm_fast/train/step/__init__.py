"""One update: the method's gradients as they come, as a compiled program or a CUDA graph; what guards them, averages
weights and adds up losses."""
