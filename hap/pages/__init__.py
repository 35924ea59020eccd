"""Pages that a person reads: one HTML file each, which opens offline and loads nothing."""
