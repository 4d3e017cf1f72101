"""From the names of inputs to rows that can be addressed, cut into windows and scanned."""
