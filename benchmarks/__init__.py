"""Side-by-side comparisons with reference implementations; each module runs as a command."""
