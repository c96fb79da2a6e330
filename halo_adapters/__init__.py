"""Front ends: one folder per framework, each importing `halo_core` and its own framework only."""
