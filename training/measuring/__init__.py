"""What packing is worth: the same samples in several layouts, and what a step costs."""
