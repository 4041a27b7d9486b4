"""Sound bounds on what a network answers: intervals, linear bounds, and randomized smoothing."""
