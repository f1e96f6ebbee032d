"""The diffusion: schedule, samplers, guidance and loss. It knows a network as a function."""
