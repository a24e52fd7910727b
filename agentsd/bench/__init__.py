"""The laboratory of speed: arms, architectures with random weights, result rows and intervals."""
