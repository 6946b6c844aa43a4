"""Claims about training objectives: grids of configurations over seeds, and what they show."""
