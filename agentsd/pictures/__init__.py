"""What people do with a patched pipeline: generate, compare, keep and look inside."""
