"""What everything else stands on, and what knows nothing of packing: errors, a command line's harness, files, tasks."""
