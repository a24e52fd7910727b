"""Everything that knows how a diffusers UNet works."""
