"""The laboratory of speed: arms, timing, architectures with random weights, rows and fronts."""
