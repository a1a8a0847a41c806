"""Deep kernel machines: kernels on Gram matrices, full and sparse machines, their limits."""
