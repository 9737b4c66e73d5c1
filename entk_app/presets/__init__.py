"""Settings by name; the first line of each file is its title."""
