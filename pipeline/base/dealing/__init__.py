"""Tasks, and who does them: this process's threads, a share of an array job, or a Ray cluster."""
