"""The gauntlet: defenses that mask a gradient and leave the decisions, with their truth known."""
