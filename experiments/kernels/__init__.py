"""Deep kernel machines: their limits, regression, classification."""
