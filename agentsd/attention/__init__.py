"""Pure tensor maths: agent attention and what chooses tokens."""
