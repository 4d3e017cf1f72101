"""The process of a command: its log, and how it ends when it is told to."""
