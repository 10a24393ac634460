"""What the paper compares its run-time switcher with: all models at once, and sub-networks of one super-network."""
