"""The command line: flags, tables, and the commands, which only call what lives elsewhere."""
