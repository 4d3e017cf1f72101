"""Publishing on an object store, where nothing can be renamed: objects are made in an order that hides what is half."""
