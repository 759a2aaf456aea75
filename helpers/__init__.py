"""See and check who gets a gradient: which parameters are frozen, what is kept for backward, what a step moves."""
