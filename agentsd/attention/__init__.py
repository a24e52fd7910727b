"""Pure tensor functions: agent attention, choosing and merging tokens."""
