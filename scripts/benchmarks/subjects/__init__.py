"""One module a subject; its `PARTS` are what can be measured."""
