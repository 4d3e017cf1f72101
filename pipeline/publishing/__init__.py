"""From a staging directory to the output's name in one step, and what may stand there already. It knows paths alone."""
