"""Where the turns of a rendered chat stand, and where the model begins and ends to write each of the assistant's."""
