"""Which layers gain on this device: plans as data and how they are measured."""
