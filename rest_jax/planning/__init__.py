"""What a run needs on a pod: compiled ahead of time, and worked out."""
