"""What made the bundled model."""
